"""What every benchmark shares: sides timed in turns, rows that say what they compare, the machine."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

#: Long enough for an engine's threads to stop waiting for more work, so that the other side does
#: not run beside them.
_REST = 0.05
_BYTECODE = Path(tempfile.gettempdir()) / "perfuse-benchmarks-bytecode"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: perfuse and something else, measured in one run on one machine."""

    what: str
    #: Measured with perfuse, and with what it is compared to; in ``unit``.
    ours: float
    theirs: float | None = None
    unit: str
    #: What ``theirs`` is.
    against: str = ""
    #: The number that the target is about, in ``figure_unit``: ``"×"``, ``"%"`` or ``"s"``.
    figure: float
    figure_unit: str = "×"
    #: The figure should not exceed it; ``None`` where nothing was promised.
    target: float | None = None
    #: Half of the rounds lie between these two, where the figure is a ratio of pairs.
    middle_half: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.figure <= self.target


def compare(
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    unit: str,
    against: str,
    target: float | None = None,
    note: str = "",
) -> Row:
    """A row for measurements in seconds that were taken in turns: the ratio of their medians."""
    scale = {"s": 1.0, "ms": 1000.0}[unit]
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 2 else [ratios[0], 0, ratios[-1]]
    return Row(
        what=what,
        ours=statistics.median(ours) * scale,
        theirs=statistics.median(theirs) * scale,
        unit=unit,
        against=against,
        figure=statistics.median(ours) / statistics.median(theirs),
        target=target,
        middle_half=(quartiles[0], quartiles[2]),
        note=note,
    )


def in_turns(
    rounds: int, sides: Mapping[str, Callable[[], float | None]]
) -> dict[str, list[float]]:
    """Run every side once a round, in an order that alternates; each result, or else the seconds."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            time.sleep(_REST)
            began = time.perf_counter()
            result = sides[name]()
            took = time.perf_counter() - began
            found[name].append(took if result is None else result)
    return found


def run_process(command: Sequence[str | os.PathLike[str]]) -> float:
    """Run a command to its end and return its seconds; its output is shown if it fails.

    Bytecode is kept for it even where the environment forbids that: pip writes an installed package's.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(_BYTECODE)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    done = subprocess.run(
        [os.fspath(part) for part in command],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    took = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return took


def say(message: str) -> None:
    """Tell on standard error how far it is; standard output holds the result alone."""
    print(f"  {message}", file=sys.stderr, flush=True)


# ── The command line ────────────────────────────────────────────────────────────────────────────


def command(
    measure: Callable[[argparse.Namespace], list[Row]],
    doc: str | None,
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """Make a benchmark a command of its own; ``more`` adds its own options to those of all."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    add_options(parser)
    more(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = measure(options)
    if options.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
    else:
        print(table(rows))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work",
        type=Path,
        default=platformdirs.user_cache_path("perfuse-benchmarks", appauthor=False),
        help="a folder for the models that are made once; 15 GB (default: %(default)s)",
    )
    parser.add_argument("--model", type=Path, help="a checkpoint instead of the bundled `shapes`")
    parser.add_argument("--rounds", type=int, help="how often each side runs")
    parser.add_argument("--quick", action="store_true", help="small stand-ins for the large models")


# ── Tables ──────────────────────────────────────────────────────────────────────────────────────

_HEAD = ("benchmark", "perfuse", "compared with", "figure", "target", "")


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned plain text, each with its note below it."""
    cells = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEAD))]
    lines = []
    for line, row in zip(cells, [None, *rows], strict=True):
        lines.append(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
        if row is not None and row.note:
            lines.append(f"    {row.note}")
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(_HEAD) + " |", "| --- " * len(_HEAD) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    theirs = f"{row.against} {_number(row.theirs)} {row.unit}" if row.theirs is not None else ""
    return (
        row.what,
        f"{_number(row.ours)} {row.unit}",
        theirs or row.against,
        _figure(row.figure, row.figure_unit),
        f"≤ {_figure(row.target, row.figure_unit)}" if row.target is not None else "",
        {True: "met", False: "missed", None: ""}[row.met],
    )


def _figure(value: float, unit: str) -> str:
    return f"{value:.2f}×" if unit == "×" else f"{_number(value)} {unit}"


def _number(value: float) -> str:
    for digits, above in ((0, 100), (1, 10), (2, 1), (3, 0.01)):
        if abs(value) >= above:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


# ── The machine ─────────────────────────────────────────────────────────────────────────────────

_TOLD = ("perfuse", "numpy", "torch", "transformers", "diffusers", "onnxruntime", "openvino")


def machine() -> dict[str, Any]:
    """What the figures depend on: the processor, the memory, the versions, the day."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **dict(map(_version, _TOLD))},
    }


def _version(name: str) -> tuple[str, str]:
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, "not installed"


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}: {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gib']} GiB, {machine['system']}; {versions}."
    )
