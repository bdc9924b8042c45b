"""Measures the errors of engines that are known to be right, to set limits from.

``python -m perfuse_conformance.calibrate FOLDER`` runs the suite itself on engines that are taken to
be right, with several models and seeds, and prints of every judged metric what 95 of 100 cases were
at least as good as, the worst case, and how far the limit is. Every run in the folder counts, and
none is made twice. ``--update`` writes what was observed into the suite's limits; the limits
themselves are a person's to set, and the worst cases are listed because one of them may be a bug of
an engine, which no limit should be made to fit.
"""

import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from perfuse.shapes import BUNDLED
from perfuse_conformance.cases.catalogue import LEVELS, Case
from perfuse_conformance.cases.models import RANDOM_MODELS
from perfuse_conformance.judge.results import Result, Run, Status, read_results
from perfuse_conformance.judge.tolerances import TOLERANCES, Limit, Tolerances, error_of
from perfuse_conformance.runner.session import Session, open_session, run_of

__all__ = ["Observed", "Reading", "main", "observed", "readings", "updated"]

TARGETS = "torch:cpu,onnxruntime:cpu,openvino:CPU"
MODELS = ",".join((*BUNDLED, *RANDOM_MODELS))

Key = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One judged number of one case."""

    #: Kind, precision and metric, as in ``Limit.key``.
    key: Key
    #: ``None`` where it could not be computed.
    value: float | None
    #: What it was held to, and the hash of the file of limits that was.
    limit: float
    tolerances: str
    target: str
    model: str
    seed: str
    case: str


@dataclass(frozen=True, kw_only=True)
class Observed:
    """All readings of one limit."""

    key: Key
    count: int
    #: What 95 of 100 readings are at least as good as; one of them, nothing in between.
    p95: float
    worst: Reading


def readings(run: Run) -> Iterator[Reading]:
    """The judged numbers of a run, without those that something else than the engine computed, and
    without trials, which are held to the limits of components and set none."""
    for result in run.results:
        if result.fallbacks or result.id.startswith("trial/"):
            continue
        for metric in result.metrics:
            if metric.limit is not None:
                name = metric.name.removeprefix("repeat_")
                yield Reading(
                    key=(_kind(result, metric.name), result.precision or "?", name),
                    value=metric.value,
                    limit=metric.limit,
                    tolerances=run.suite["tolerances_sha256"],
                    target=run.backend["target"],
                    model=run.run["model"],
                    seed=run.run["seed"],
                    case=result.id,
                )


def _kind(result: Result, metric: str) -> str:
    """The kind of limit that a case's metric is held to."""
    kind = result.id.partition("/")[0]
    if metric.startswith("repeat_"):
        return "repeat"
    if kind == "draw":
        return "free" if metric == "rmse_ratio" else "picture"
    return kind


def observed(found: Iterable[Reading]) -> dict[Key, Observed]:
    """What was reached, by limit.

    Left out are pictures that were held to a wider limit than others because the reference itself
    is far from the truth: they say nothing of the limit.
    """
    by_limit: dict[tuple[Key, str], list[Reading]] = {}
    for reading in found:
        by_limit.setdefault((reading.key, reading.tolerances), []).append(reading)
    by_key: dict[Key, list[Reading]] = {}
    for (key, _), group in by_limit.items():
        strictest = min(error_of(key[2], reading.limit) for reading in group)
        kept = [r for r in group if error_of(key[2], r.limit) <= strictest * (1 + 1e-9)]
        by_key.setdefault(key, []).extend(kept)
    return {key: _observed(key, group) for key, group in sorted(by_key.items())}


def _observed(key: Key, group: Sequence[Reading]) -> Observed:
    def error(reading: Reading) -> float:
        return math.inf if reading.value is None else error_of(key[2], reading.value)

    ordered = sorted(group, key=error)
    at = ordered[math.ceil(0.95 * len(ordered)) - 1].value
    return Observed(
        key=key,
        count=len(ordered),
        p95=math.nan if at is None else at,
        worst=ordered[-1],
    )


def updated(text: str, found: Mapping[Key, Observed], evidence: str) -> str:
    """The text of the limits file, updated with the errors that were measured."""
    lines = []
    entry: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition(" = ")
        if line.startswith("[["):
            entry = {}
        elif equals and name in ("kind", "precision", "metric"):
            entry[name] = value.strip('"')
        seen = found.get(
            (entry.get("kind", ""), entry.get("precision", ""), entry.get("metric", ""))
        )
        if seen is not None and equals and name == "observed_p95":
            line = f"observed_p95 = {_rounded(seen)!r}"
        elif seen is not None and equals and name == "evidence":
            line = f'evidence = "{evidence}; {seen.count} cases"'
        lines.append(line)
    return "\n".join(lines) + "\n"


def _rounded(seen: Observed) -> float:
    """The error rounded to three digits, always towards worse."""
    metric, value = seen.key[2], seen.p95
    if value == 0 or error_of(metric, value) == 0:
        return value
    if metric.endswith("_db"):
        return math.floor(value * 10) / 10
    error = error_of(metric, value)
    unit = 10.0 ** (math.floor(math.log10(error)) - 2)
    up = math.ceil(error / unit) * unit
    digits = max(2 - math.floor(math.log10(error)), 0)
    return round(1 - up if metric in ("ssim", "agreement") else up, digits)


# Running


def _make_runs(
    folder: Path,
    targets: Sequence[str],
    models: Sequence[str],
    seeds: int,
    level: str,
    only: str,
) -> None:
    """Make those of the runs asked for that are not in the folder."""
    for model in models:
        for seed in range(seeds):
            for target in targets:
                parts = (model, level, only.strip("/"), str(seed), target)
                name = "-".join(part for part in parts if part != "")
                path = folder / f"{name.replace('/', '-').replace(':', '-')}.json"
                if not path.is_file():
                    click.echo(f"{model}, {level}, seed {seed}: {target}", err=True)
                    _run(target, model, level, seed, only).write(path)


def _run(target: str, model: str, level: str, seed: int, only: str) -> Run:
    session = open_session(target, model=model, level=level, seed=seed)
    try:
        cases = session.cases()
        chosen = [case for case in (*cases, *_halves(session, cases)) if case.id.startswith(only)]
        results = [session.judge(case) for case in chosen]
        run = run_of(session, results, "python -m perfuse_conformance.calibrate")
        return replace(run, run={**run.run, "seed": str(seed)})
    finally:
        session.close()


def _halves(session: Session, cases: Sequence[Case]) -> Iterator[Case]:
    """Quality in half precision too, which a run asks of a device that has nothing wider."""
    listed = session.device.get("precisions", ())
    for case in cases:
        if case.kind == "quality":
            for precision in ("float16", "bfloat16"):
                if precision in listed and precision != case.precision:
                    yield replace(case, id=f"{case.id}/{precision}", precision=precision)


def _evidence(runs: Sequence[Run]) -> str:
    """One line about some runs: their engines, models and number of seeds."""
    engines = sorted({f"{run.backend['target']} ({run.backend['engine']})" for run in runs})
    models = sorted({run.run["model"] for run in runs})
    seeds = max(int(run.run["seed"]) for run in runs) + 1
    day = max(run.run["utc"] for run in runs).partition("T")[0]
    return (
        f"python -m perfuse_conformance.calibrate, {day}, {platform.system()} {platform.machine()}: "
        f"{', '.join(engines)}; {', '.join(models)}; up to {seeds} seeds"
    )


def _table(found: Mapping[Key, Observed], limits: Mapping[Key, Limit]) -> Iterator[str]:
    yield f"{'limit':34} {'cases':>6} {'p95':>10} {'worst':>10} {'limit':>8} {'slack':>6}  worst case"
    for key, seen in found.items():
        limit = limits.get(key)
        slack = replace(limit, observed_p95=seen.p95).slack if limit is not None else math.nan
        worst = seen.worst
        value = math.nan if worst.value is None else worst.value
        yield (
            f"{' '.join(key):34} {seen.count:6} {seen.p95:10.5g} {value:10.5g} "
            f"{limit.limit if limit is not None else math.nan:8.5g} {slack:6.2f}  "
            f"{worst.target} {worst.model} seed {worst.seed} {worst.case}"
        )


def _failures(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        for result in run.results:
            if result.status.failed or result.status is Status.QUALITY_WARNING:
                yield (
                    f"{result.status} {run.backend['target']} {run.run['model']} "
                    f"seed {run.run['seed']} {result.id}: {result.reason or _told(result)}"
                )


def _told(result: Result) -> str:
    values = ((m.name, math.nan if m.value is None else m.value, m.limit) for m in result.metrics)
    return ", ".join(f"{name} {value:.4g} (limit {limit})" for name, value, limit in values)


def _by_target(found: Sequence[Reading], seen: Mapping[Key, Observed]) -> Iterator[str]:
    """Whether one engine is far from the others: the median of each, by limit."""
    targets = sorted({reading.target for reading in found})
    yield f"{'median':34} " + " ".join(f"{target:>16}" for target in targets)
    for key in seen:
        medians = []
        for target in targets:
            values = [r.value for r in found if (r.key, r.target) == (key, target)]
            numbers = [value for value in values if value is not None]
            medians.append(f"{np.median(numbers):16.5g}" if numbers else f"{'':16}")
        yield f"{' '.join(key):34} " + " ".join(medians)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--targets", default=TARGETS, show_default=True, help="Engines taken to be right.")
@click.option("--models", default=MODELS, show_default=True)
@click.option("--seeds", type=click.IntRange(0), default=5, show_default=True)
@click.option("--level", type=click.Choice(LEVELS[1:]), default="L2", show_default=True)
@click.option("--only", default="", help="Only cases whose id begins so: quality/")
@click.option("--update", is_flag=True, help="Write what was observed into the suite's limits.")
def main(
    folder: Path, targets: str, models: str, seeds: int, level: str, only: str, update: bool
) -> None:
    """Run the suite on reference engines; results are written to FOLDER, and reused from it."""
    folder.mkdir(parents=True, exist_ok=True)
    _make_runs(folder, targets.split(","), models.split(","), seeds, level, only)
    runs = [read_results(path) for path in sorted(folder.glob("*.json"))]
    limits = {limit.key: limit for limit in Tolerances.load().entries}
    found = [reading for run in runs for reading in readings(run)]
    seen = observed(found)
    for line in (*_table(seen, limits), "", *_by_target(found, seen), "", *_failures(runs)):
        click.echo(line)
    if update:
        text = TOLERANCES.read_text(encoding="utf-8")
        TOLERANCES.write_text(updated(text, seen, _evidence(runs)), encoding="utf-8")
