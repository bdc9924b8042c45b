"""The table of bridged pipelines: a file of data, and a page whose table is made of nothing else.

``python -m perfuse_conformance.bridged --data FILE.json --page FILE.md`` draws with every recipe, or
with those named, puts the results into the data and the table into the page; with ``--check`` it only
says whether the page's table is what the data gives.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from dacite import Config, from_dict

from perfuse_conformance.bridged.measure import Measured, measure
from perfuse_conformance.bridged.recipe import recipes

__all__ = ["main", "merged", "rendered"]

_BEGIN, _END = "<!-- table of bridged pipelines -->", "<!-- end of the table -->"
_TARGETS = ("onnxruntime", "openvino")
_TOOLS = ("diffusers", "transformers", "torch", "onnxruntime", "openvino")
Data = Mapping[str, Any]


def merged(data: Data, newer: Iterable[Measured]) -> dict[str, Any]:
    """The data with newer rows in the place of those of the same pipeline and target."""
    rows = {(row["pipeline"], row["target"]): row for row in data.get("rows", ())}
    rows |= {(row.pipeline, row.target): asdict(row) for row in newer}
    return {"tools": {tool: version(tool) for tool in _TOOLS}, "rows": list(rows.values())}


def read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return data


def _rows(data: Data) -> list[Measured]:
    return [from_dict(Measured, row, Config(cast=[tuple])) for row in data.get("rows", ())]


def rendered(data: Data) -> str:
    """The table in Markdown: a row a pipeline, with what stayed on torch below it."""
    groups: dict[str, list[Measured]] = {}
    for row in _rows(data):
        groups.setdefault(row.pipeline, []).append(row)
    tools = ", ".join(f"{tool} {number}" for tool, number in data.get("tools", {}).items())
    good = [name for name, rows in groups.items() if all(row.agrees for row in rows)]
    there = [name for name in good if all(_mostly_there(row) for row in groups[name])]
    said = (
        f"{len(good)} of {len(groups)} pipelines agree with eager on both engines; {len(there)} of "
        f"them spend at least 80 % of the denoiser's time there ({tools})."
    )
    lines = [
        said,
        "",
        f"| pipeline | task | {' | '.join(_TARGETS)} | on the engine | on torch |",
        f"|---|---|{'---|' * len(_TARGETS)}---|---|",
    ]
    lines += [_line(name, rows) for name, rows in groups.items()]
    return "\n".join(lines)


def _mostly_there(row: Measured) -> bool:
    """Whether the engine has the most of the denoiser's time."""
    return row.engine_share is not None and row.engine_share >= 0.8


def _line(name: str, rows: Sequence[Measured]) -> str:
    on = {row.target: row for row in rows}
    cells = [_verdict(on[target]) if target in on else "not run" for target in _TARGETS]
    return f"| {name} | {rows[0].kind} | {' | '.join(cells)} | {_graphs(rows)} | {_torch(rows)} |"


def _verdict(row: Measured) -> str:
    if row.failure:
        return f"✗ {_escaped(row.failure)}"
    if row.difference is None:
        return "✗ another shape, or no numbers"
    unit = (
        f"{row.difference * 255:.2g}/255" if row.compared == "picture" else f"{row.difference:.0e}"
    )
    share = row.engine_share
    part = "" if share is None else f", {share:.0%}"
    return f"{'✓' if row.agrees else '✗'} {unit}{part}"


def _graphs(rows: Sequence[Measured]) -> str:
    """Each method that ran as a graph everywhere, with its calls."""
    named: dict[str, list[int]] = {}
    for row in rows:
        for part in row.parts:
            named.setdefault(part.name, []).append(part.calls)
    return ", ".join(f"{name} {min(calls)}" for name, calls in named.items() if min(calls))


def _torch(rows: Sequence[Measured]) -> str:
    """Each method with calls that stayed on torch, and why."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for part in row.parts:
            if part.torch_calls:
                why = part.reasons[0] if part.reasons else ""
                found.setdefault(f"{part.name} {part.torch_calls}: {_escaped(why)}", []).append(
                    row.target
                )
    return "; ".join(
        text if len(targets) == len(rows) else f"{text} ({', '.join(targets)})"
        for text, targets in found.items()
    )


def _escaped(text: str) -> str:
    """On one line of a table, and short."""
    plain = " ".join(text.replace("|", "/").replace("<", "‹").replace(">", "›").split())
    return plain if len(plain) <= 160 else f"{plain[:159]}…"


def _put(page: str, table: str) -> str:
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{table}\n{_END}{after}"


def _measured(names: Sequence[str], targets: Sequence[str]) -> Iterator[Measured]:
    import diffusers  # noqa: F401 - loaded once; each pipeline has a copy of this process

    known = {one.name: one for one in recipes()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in names or known:
            for target in targets:
                row = measure(known[name], target, Path(folder))
                click.echo(f"{name} on {target}: {_verdict(row)} {_torch([row])}")
                yield row


@click.command()
@click.argument("names", nargs=-1)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The file of data.")
@click.option("--page", type=click.Path(path_type=Path), help="The page that has the table.")
@click.option(
    "--target", "targets", multiple=True, default=_TARGETS, help="An engine to draw with."
)
@click.option("--check", is_flag=True, help="Draw nothing; compare the page with the data.")
def main(
    names: tuple[str, ...], data: Path, page: Path | None, targets: tuple[str, ...], check: bool
) -> None:
    """Draw with the pipelines of these NAMES, or with all, eager and bridged."""
    if not check:
        for row in _measured(names, targets):  # each is kept as soon as it is there
            text = json.dumps(merged(read(data), [row]), indent=1, ensure_ascii=False)
            data.write_text(text + "\n", "utf-8")
    if page is None:
        return
    made = _put(page.read_text("utf-8"), rendered(read(data)))
    if not check:
        page.write_text(made, "utf-8")
    elif made != page.read_text("utf-8"):
        raise click.ClickException(
            f"The table in {page} is not what {data} gives. Make it again with --page, without "
            "naming pipelines that are measured already."
        )
