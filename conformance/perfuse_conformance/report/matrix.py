"""The picture of all backends and models: a small file of data, and an SVG made from nothing else.

``python -m perfuse_conformance.matrix RESULTS.json … --data FILE.json --picture FILE.svg`` puts runs
into the data and draws it; with ``--check`` it only says whether the picture is what the data gives.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from perfuse.errors import InputError, PerfuseError
from perfuse.sources import read_json
from perfuse_conformance.judge.results import ResultsError, Run, Status, read_results
from perfuse_conformance.report import presentation as said
from perfuse_conformance.report.presentation import KINDS

__all__ = ["main", "merge", "read_data", "render_matrix", "summarise"]

_VERSION = "1.0"
_LABELS = {"L0": "host", "L1": "components", "L2": "pipelines", "L3": "quality"}
_MARKS = {
    "good": "✓",
    "warn": "!",
    "bad": "✗",
    "fallback": "↪",
    "expected": "x",
    "refused": "–",
    "absent": "○",
}
_BUILD = re.compile(r"(?<=\d)[-+]\S*$")
# In pixels: the column of names, the columns of backends, a line, the heads above the lines.
_FIRST, _LEAST, _WIDTH, _GAP, _LINE, _TOP, _HEAD = 178, 136, 840, 8, 23, 58, 58


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """What the picture needs of runs: plain data, an entry each."""
    entries = [_entry(run) for run in runs]
    return {"schema_version": _VERSION, "titles": {}, "brief": [], "entries": entries}


def _entry(run: Run) -> dict[str, Any]:
    groups: dict[str, dict[str, Counter[str]]] = {}
    for result in run.results:
        group = said.group_of(result)
        counts = groups.setdefault(group.level, {}).setdefault(group.name, Counter())
        counts[result.status.value] += 1
    return {
        "model": said.model_said(run.run["model"]),
        "target": run.backend["target"],
        "engine": run.backend["engine"],
        "interprets": run.interprets,
        "date": run.run["utc"][:10],
        "suite": run.suite["version"],
        "tolerances": run.suite["tolerances"],
        "asked": run.run["level"],
        "claim": {"level": run.claim.level, "profiles": list(run.claim.profiles)},
        "executed": run.totals["executed"],
        "levels": {
            level: {name: dict(sorted(counts.items())) for name, counts in names.items()}
            for level, names in sorted(groups.items())
        },
    }


def merge(data: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """The data with newer entries replacing those of the same model and target."""
    entries = {(e["model"], e["target"]): e for e in [*data["entries"], *newer["entries"]]}
    return {
        "schema_version": _VERSION,
        "titles": {**data["titles"], **newer["titles"]},
        "brief": list(dict.fromkeys([*data.get("brief", []), *newer.get("brief", [])])),
        "entries": list(entries.values()),
    }


def read_data(path: Path) -> dict[str, Any]:
    """Read the data.

    Raises:
        ResultsError: there is no such file, or it is not what ``summarise`` makes.
    """
    try:
        data = read_json(path, error=ResultsError)
        if data["schema_version"] != _VERSION:
            raise ResultsError(
                f"{path} has the schema version {data['schema_version']!r}; this suite draws "
                f"{_VERSION}. Update perfuse, or summarise the results again."
            )
        for entry in data["entries"]:
            _levels(entry)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ResultsError(
            f"{path} was to be drawn; it is not a summary of results ({type(exc).__name__}: {exc}). "
            "Summarise the results again."
        ) from exc
    checked: dict[str, Any] = data
    return checked


def _levels(entry: Mapping[str, Any]) -> dict[str, Counter[Status]]:
    """How many cases of each status there are, by level."""
    levels: dict[str, Counter[Status]] = {}
    for level, groups in entry["levels"].items():
        counts = levels.setdefault(level, Counter())
        for statuses in groups.values():
            counts.update({Status(name): int(count) for name, count in statuses.items()})
    return levels


def render_matrix(data: Mapping[str, Any]) -> str:
    """Draw the data as SVG, for light and dark themes; equal data gives equal files."""
    from perfuse_conformance.report.html import environment

    template = environment().get_template("matrix.svg.jinja")
    return template.render(it=_layout(data), KINDS=KINDS) + "\n"


def _layout(data: Mapping[str, Any]) -> dict[str, Any]:
    """The layout of the drawing, in pixels."""
    entries = data["entries"]
    targets = list(dict.fromkeys(entry["target"] for entry in entries))
    known = list(dict.fromkeys(entry["model"] for entry in entries))
    brief = [model for model in data.get("brief", []) if model in known]
    models = [model for model in known if model not in brief]
    column = max((_WIDTH - _FIRST) // max(len(targets), 1), _LEAST)
    places = {target: _FIRST + column * i + column // 2 for i, target in enumerate(targets)}
    blocks = []
    y = _TOP
    for model in models:
        own = {entry["target"]: entry for entry in entries if entry["model"] == model}
        block = _block(data["titles"].get(model, model), own, places, y)
        blocks.append(block)
        y = block["end"]
    rows = []
    for i, model in enumerate(brief):
        own = {entry["target"]: entry for entry in entries if entry["model"] == model}
        title = data["titles"].get(model, model)
        rows.append(_row(title, own, places, y + _GAP + _LINE * i))
    top, y = y, y + (_LINE * len(rows) + 2 * _GAP if rows else 0)
    notes = _notes(entries)
    # A build's tag is in the data; the picture has room for the version.
    engines = {entry["target"]: _BUILD.sub("", entry["engine"]) for entry in entries}
    interpreted = {entry["target"]: entry.get("interprets", "") for entry in entries}
    return {
        "title": f"Conformance of {', '.join(targets)} with {', '.join([*models, *brief])}",
        "width": _FIRST + column * len(targets) + _GAP,
        "height": y + 17 * len(notes) + 20,
        "top": _TOP,
        "bottom": y,
        "cell": column - _GAP,
        "columns": [
            {
                "x": x,
                "target": interpreted[target] or target,
                "engine": "interpreted" if interpreted[target] else engines[target],
            }
            for target, x in places.items()
        ],
        "models": blocks,
        "rows_top": top,
        "rows": rows,
        "notes": notes,
    }


def _block(
    title: str, own: Mapping[str, Mapping[str, Any]], places: Mapping[str, int], y: int
) -> dict[str, Any]:
    """One model: its claims, and below them a line a level."""
    levels = sorted({level for entry in own.values() for level in entry["levels"]})
    lines = {level: y + _HEAD + _LINE * i for i, level in enumerate(levels)}
    cells = [
        {"x": places[target], "y": lines[level], **_cell(counts)}
        for target, entry in own.items()
        for level, counts in _levels(entry).items()
    ]
    return {
        "y": y,
        "end": y + _HEAD + _LINE * len(levels) + 10,
        "title": title,
        "labels": [
            {"level": level, "text": _LABELS.get(level, ""), "y": at} for level, at in lines.items()
        ],
        "claims": [{"x": x, **_claim(own.get(target))} for target, x in places.items()],
        "cells": cells,
    }


def _row(
    title: str, own: Mapping[str, Mapping[str, Any]], places: Mapping[str, int], y: int
) -> dict[str, Any]:
    """One model in a line: its claims, each with all cases together."""
    cells = []
    for target, entry in own.items():
        counts: Counter[Status] = Counter()
        for statuses in _levels(entry).values():
            counts.update(statuses)
        cell = _cell(counts)
        cells.append(
            {"x": places[target], **cell, "text": f"{entry['claim']['level']} {cell['text']}"}
        )
    return {"y": y, "title": title, "cells": cells}


def _claim(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        return {"level": None, "word": "not run"}
    if entry["executed"] == 0:
        return {"level": None, "word": "not executed"}
    profiles = " ".join(f"+{profile}" for profile in entry["claim"]["profiles"])
    return {
        "level": entry["claim"]["level"],
        "profiles": profiles,
        "interpreted": bool(entry.get("interprets", "")),
    }


def _cell(counts: Mapping[Status, int]) -> dict[str, str]:
    look = said.look_of_counts(counts)
    asked, passed = said.asked_of(counts), said.passed_of(counts)
    text = f"{_MARKS[look.kind]} {passed} of {asked}" if asked else f"{look.symbol} {look.word}"
    return {"kind": look.kind, "text": text}


def _notes(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    kinds = {
        said.look_of_counts(counts).kind for entry in entries for counts in _levels(entry).values()
    }
    legend = [f"{_MARKS[kind]} {word}" for kind, word in KINDS.items() if kind in kinds]
    dates = sorted({entry["date"] for entry in entries})
    suites = sorted({f"suite {e['suite']}, limits {e['tolerances']}" for e in entries})
    interpreted = sorted({e["interprets"] for e in entries if e.get("interprets")})
    when = dates[0] if len(set(dates)) == 1 else f"{dates[0]} to {dates[-1]}" if dates else "never"
    return [
        "Cases that are right, of those that the backend says it can do. The mark is the worst of "
        "them: " + ", ".join(legend) + ".",
        f"Run {when}; {'; '.join(suites)}. A column executed on that engine"
        + (
            f", but for {' and '.join(interpreted)}: interpreted, on a machine without the hardware."
            if interpreted
            else "."
        ),
    ]


@click.command()
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The JSON file.")
@click.option("--picture", required=True, type=click.Path(path_type=Path), help="The SVG file.")
@click.option("--title", "titles", multiple=True, help="MODEL=TITLE: how a model is called.")
@click.option("--brief", multiple=True, help="MODEL: in one line, without a line for each level.")
@click.option("--check", is_flag=True, help="Write nothing; fail if the picture is not current.")
def main(
    results: tuple[Path, ...],
    data: Path,
    picture: Path,
    titles: tuple[str, ...],
    brief: tuple[str, ...],
    check: bool,
) -> None:
    """Put RESULTS into the data, and draw it."""
    try:
        _main(results, data, picture, titles, brief, check)
    except PerfuseError as exc:
        click.echo(f"perfuse: {exc}", err=True)
        raise SystemExit(1) from exc


def _main(
    results: Sequence[Path],
    data: Path,
    picture: Path,
    titles: Sequence[str],
    brief: Sequence[str],
    check: bool,
) -> None:
    wrong = [title for title in titles if "=" not in title]
    if wrong:
        raise InputError(f"--title {wrong[0]!r} was given; a title is written MODEL=TITLE.")
    if check:
        drawn = picture.read_text(encoding="utf-8") if picture.is_file() else None
        if drawn != render_matrix(read_data(data)):
            raise ResultsError(
                f"{picture} is not what {data} renders to. Draw it: python -m "
                f"perfuse_conformance.matrix --data {data} --picture {picture}"
            )
        return
    found = summarise([read_results(path) for path in results])
    found["titles"] = dict(title.split("=", 1) for title in titles)
    found["brief"] = list(brief)
    # Without results there has to be something to draw.
    if data.exists() or not results:
        found = merge(read_data(data), found)
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    svg = render_matrix(found)
    data.write_text(text, encoding="utf-8")
    picture.write_text(svg, encoding="utf-8")
