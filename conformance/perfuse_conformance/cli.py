"""``perfuse conformance``: measure backends, record a golden bundle, put results together."""

import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from perfuse.errors import InputError, NotNativeError
from perfuse.plugins import missing_modules
from perfuse.report import safe, say
from perfuse_conformance.cases.catalogue import LEVELS
from perfuse_conformance.cases.models import RANDOM_MODELS, arguments_of, path_of, transforms_of
from perfuse_conformance.judge.results import Result, Run, Status, read_results

__all__ = ["conformance"]

_RESULTS = "results.json"
#: Checks files of limits and results, compares pictures, writes reports.
_NEEDED = ("jsonschema", "skimage", "flip_evaluator", "junitparser", "jinja2")
_MODEL_HELP = (
    "A checkpoint's folder, an exported folder, a Hub id, the bundled shapes-flow, or a small random "
    f"model: {', '.join(RANDOM_MODELS)}. By default the bundled shapes."
)


@click.group(invoke_without_command=True)
@click.option(
    "--backend", "targets", multiple=True, help="BACKEND[:DEVICE]; several, side by side."
)
@click.option("--model", help=_MODEL_HELP)
@click.option("--level", type=click.Choice(LEVELS), default="L2", show_default=True)
@click.option(
    "--case", "ids", multiple=True, help="Ask this case alone, by its id; no level is granted."
)
@click.option("--option", "options", multiple=True, help="A backend's switch: threads=1.")
@click.option("--precision", "precisions", multiple=True, help="Ask in this one alone.")
@click.option("--transform", "transforms", multiple=True, help="To put on: NAME:key=value.")
@click.option(
    "--lora",
    type=click.Path(path_type=Path),
    help="Switch this one on and off, in place of the suite's own.",
)
@click.option("--golden", type=click.Path(path_type=Path), help="Judge by this bundle.")
@click.option("--report", type=click.Path(path_type=Path), help="Write a report into this folder.")
@click.option(
    "--expectations", type=click.Path(path_type=Path), help="Known failures, a TOML file."
)
@click.option(
    "--bridged", is_flag=True, help="Run Diffusers' own pipeline, even where perfuse has its own."
)
@click.option(
    "--arg",
    "arguments",
    metavar="NAME=VALUE",
    multiple=True,
    help="For a bridged pipeline: an argument of its call, as JSON or text.",
)
@click.option("--seed", type=int, help="Draws trials, pictures, the order; today's by default.")
@click.option("--thorough", is_flag=True, help="Draw more, and larger; takes much longer.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds a case.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_context
def conformance(
    ctx: click.Context, /, targets: tuple[str, ...], ids: tuple[str, ...], **settings: Any
) -> None:
    """Measure a backend against the reference, case by case.

    Exit status: 0 where the results grant the level, 1 where they do not or anything failed.
    """
    if missing := missing_modules(_NEEDED):
        raise InputError(
            f"Conformance was asked for; {', '.join(missing)} is not installed. Run: pip install "
            "'perfuse[conformance]'"
        )
    if ctx.invoked_subcommand is not None:
        return
    if not targets:
        raise InputError("Name a backend: perfuse conformance --backend onnxruntime:cpu.")
    ctx.exit(
        0 if (_single(targets, ids, **settings) if ids else _measure(targets, **settings)) else 1
    )


def _measure(
    targets: Sequence[str],
    model: str | None,
    level: str,
    options: tuple[str, ...],
    precisions: tuple[str, ...],
    transforms: tuple[str, ...],
    lora: Path | None,
    golden: Path | None,
    report: Path | None,
    expectations: Path | None,
    seed: int | None,
    thorough: bool,
    timeout: float,
    bridged: bool,
    arguments: tuple[str, ...],
    as_json: bool,
) -> bool:
    from perfuse_conformance.judge.expectations import expected
    from perfuse_conformance.runner.bridged import run_bridged
    from perfuse_conformance.runner.drawn import save_drawn
    from perfuse_conformance.runner.picture_cases import Drawn
    from perfuse_conformance.runner.session import run_conformance

    if not timeout > 0:  # which Not-a-Number is not, either
        raise InputError(f"--timeout {timeout:g} was given; a case needs some seconds.")
    switches = _switches(options)
    runs: list[Run] = []
    folders: list[Path] = []
    good = True
    for target in targets:
        with _progress(target, as_json=as_json) as watch:
            command = shlex.join(["perfuse", *sys.argv[1:]])
            drawn: list[Drawn] = []
            native = not bridged
            if native:
                try:
                    run, drawn = run_conformance(
                        target,
                        model=model,
                        level=level,
                        precisions=precisions,
                        transforms=transforms,
                        lora=lora,
                        golden=golden,
                        options=switches,
                        draw_seed=_seed(seed),
                        thorough=thorough,
                        timeout=timeout,
                        command=command,
                        watch=watch,
                    )
                except NotNativeError:
                    native = False
            if not native and lora is not None:
                raise InputError(
                    "--lora was given; a bridged pipeline is measured without one. Leave it out."
                )
            if not native:
                run = run_bridged(
                    target,
                    model=str(model),
                    level=level,
                    arguments={**arguments_of(model), **_arguments(arguments)},
                    precision=precisions[0] if precisions else None,
                    options=switches,
                    transforms=transforms,
                    seed=seed if seed is not None else 0,
                    command=command,
                    watch=watch,
                )
        run, complaints = expected(run, expectations)
        for complaint in complaints:
            say(f"perfuse: {complaint}", err=True)
        if report is not None:
            folder = report / _folder_of(run)
            run = save_drawn(run, drawn, folder)
            run.write(folder / _RESULTS)
            folders.append(folder)
        runs.append(run)
        good = good and _good(run) and not complaints
    if report is not None:
        _write_report(runs, folders, report)
    if as_json:
        click.echo(json.dumps({"runs": [run.to_dict() for run in runs]}))
    else:
        for run in runs:
            _print_run(run)
        if report is not None:
            say(f"{report / 'index.html'}")
    return good


def _seed(given: int | None) -> int:
    """The seed of what is drawn: the day, as 20261122, where none is given."""
    return given if given is not None else int(f"{datetime.datetime.now(datetime.UTC):%Y%m%d}")


def _arguments(given: Sequence[str]) -> dict[str, Any]:
    """The arguments of a pipeline's call, as JSON or text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--arg {text!r} was given; an argument is written NAME=VALUE.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _switches(options: Sequence[str]) -> dict[str, str]:
    wrong = [text for text in options if "=" not in text]
    if wrong:
        raise InputError(f"--option {wrong[0]!r} was given; an option is written NAME=VALUE.")
    return dict(text.split("=", 1) for text in options)


def _single(
    targets: Sequence[str],
    ids: Sequence[str],
    report: Path | None,
    expectations: Path | None,
    options: tuple[str, ...],
    bridged: bool,
    arguments: tuple[str, ...],
    seed: int | None,
    as_json: bool,
    **settings: Any,
) -> bool:
    """Run single cases: print their numbers, and return whether all that ran passed."""
    if bridged or arguments:
        raise InputError(
            "--case was given; a bridged pipeline is measured as a whole. Leave it out."
        )
    from perfuse_conformance.report.single import judge_single, lines_of

    if report is not None or expectations is not None:
        raise InputError(
            "--case was given with --report or --expectations; these are of whole runs. "
            "Leave one of them out."
        )
    found = {
        target: judge_single(
            target, ids, options=_switches(options), draw_seed=_seed(seed), **settings
        )
        for target in targets
    }
    if as_json:
        click.echo(json.dumps({t: [dataclasses.asdict(r) for r in rs] for t, rs in found.items()}))
    else:
        for target, results in found.items():
            say("\n".join([target, *(line for r in results for line in lines_of(r))]))
    statuses = [result.status for results in found.values() for result in results]
    return any(s.executed for s in statuses) and not any(s.failed for s in statuses)


def _good(run: Run) -> bool:
    """Whether nothing failed and the requested level is granted; cases that did not run grant none."""
    failed = any(result.status.failed for result in run.results)
    return not failed and run.claim.level == run.run["level"]


def _folder_of(run: Run) -> str:
    """A folder's name for a run: the target and the model, in letters that every system takes."""
    model = Path(run.run["model"]).name
    text = f"{run.backend['target']}-{model}"
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)


@contextmanager
def _progress(target: str, *, as_json: bool) -> Iterator[Callable[[Result], None]]:
    """A line for each failure as it comes; on a terminal also a count."""
    from rich.console import Console
    from rich.text import Text

    to = Console(stderr=True, highlight=False)
    if not to.is_terminal or as_json:
        yield lambda result: None
        return
    done = 0
    with to.status(Text(safe(f"{target}: the reference"))) as status:

        def watch(result: Result) -> None:
            nonlocal done
            done += 1
            status.update(Text(safe(f"{target}: {done} cases, {result.id}")))

        yield watch


def _print_run(run: Run) -> None:
    """The claim, the counts, and every case that needs a word."""
    counts = {name: count for name, count in run.totals.items() if name.isupper()}
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    model = Path(run.run["model"]).name
    manner = f" interpreted, not executed on {run.interprets}" if run.interprets else ""
    say(f"{run.backend['target']}  {model}  {run.claim}{manner}  {told}", bold=True)
    if "draw_seed" in run.run:
        say(f"  drawn with --seed {run.run['draw_seed']}")
    for result in run.results:
        if result.status.failed or result.status in (
            Status.PASS_FALLBACK,
            Status.UNDER_DECLARED,
            Status.ENV_MISSING,
        ):
            say(f"  {result.status}  {result.id}  {result.reason}")
            if result.rerun:
                say(f"    again: {result.rerun}")
    lost = sum(result.status is Status.NOT_RUN for result in run.results)
    if lost:
        say(f"  {lost} cases were not run: a case before them took their program down")


def _write_report(runs: Sequence[Run], folders: Sequence[Path], report: Path) -> None:
    from perfuse_conformance.report.html import write_report
    from perfuse_conformance.report.junit import write_junit

    write_junit(runs, report / "junit.xml")
    write_report(runs, report, folders)


@conformance.command()
@click.option("--backend", "target", default="torch:cpu", show_default=True)
@click.option("--model", help=_MODEL_HELP)
@click.option("--level", type=click.Choice(LEVELS[1:]), default="L2", show_default=True)
@click.option("--seed", type=int, default=0)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="A new folder."
)
def record(target: str, model: str | None, level: str, seed: int, output: Path) -> None:
    """Write a golden bundle: the reference's results, for machines that cannot compute them."""
    from perfuse_conformance.reference.record import record as write

    bundle = write(
        path_of(model),
        output,
        target=target,
        level=level,
        seed=seed,
        transforms=transforms_of(model),
    )
    size = sum(path.stat().st_size for path in output.iterdir())
    index = bundle.index
    say(
        f"{output}  ({len(index['probes'])} probes, {len(index['draws'])} pictures, "
        f"{size / 1e6:.1f} MB)"
    )


@conformance.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A folder.")
def report(results: tuple[Path, ...], output: Path) -> None:
    """Put several results.json together in one report."""
    paths = [path / _RESULTS if path.is_dir() else path for path in results]
    runs = [read_results(path) for path in paths]
    output.mkdir(parents=True, exist_ok=True)
    _write_report(runs, [path.parent for path in paths], output)
    say(f"{output / 'index.html'}")
