"""What ``perfuse bench`` measured: a table, and a plot of time against quality."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.errors import InputError
from perfuse.plugins import missing_modules
from perfuse.report.console import console, safe
from perfuse.sources.files import check_folder

if TYPE_CHECKING:
    from perfuse.run.bench import Row

__all__ = ["check_plot", "print_rows", "save_plot"]


def print_rows(rows: "Sequence[Row]") -> None:
    """Print one line for each way to draw."""
    named = {row.name: row for row in rows}
    cells = [_TITLES, *(_cells(row, named.get(row.rival or "")) for row in rows)]
    used = [i for i in range(len(_TITLES)) if any(line[i] for line in cells[1:])]
    widths = {i: max(len(line[i]) for line in cells) for i in used}
    for line in cells:
        first, *others = (f"{line[i]:{widths[i]}}" for i in used)
        console().print("  ".join((first, *others)).rstrip())


_TITLES = (
    "way",
    "s a picture",
    "speed",
    "memory",
    "PSNR",
    "SSIM",
    "FLIP",
    "CLIP",
    "right",
    "95 %",
    "fewer steps in that time",
    "predictions",
)


def _cells(row: "Row", rival: "Row | None") -> tuple[str, ...]:
    low, high = row.interval if row.interval is not None else (0.0, 0.0)
    return (
        safe(row.name),
        f"{row.seconds:.3g}",
        f"{row.speed:.2f}×",
        f"{row.memory / 1e9:.2f} GB" if row.memory is not None else "",
        f"{row.psnr:.1f} dB" if row.psnr < 100 else "",
        f"{row.ssim:.3f}",
        f"{row.flip:.3f}",
        f"{row.clip:.2f}" if row.clip is not None else "",
        f"{row.right} of {row.pictures}" if row.right is not None else "",
        f"{100 * low:.0f} to {100 * high:.0f}" if row.interval is not None else "",
        _against(row, rival),
        ", ".join(f"{count:g} {safe(name)}" for name, count in row.predictions.items()),
    )


def _against(row: "Row", rival: "Row | None") -> str:
    """What fewer steps draw in the same time, and which of the two is nearer to the plain pictures."""
    if rival is None:
        return ""
    right = f", {rival.right} right" if rival.right is not None else ""
    word = "better" if row.psnr > rival.psnr else "worse"
    return f"{word} than {rival.steps}: {rival.psnr:.1f} dB{right}"


def check_plot(path: Path) -> None:
    """Raise ``InputError`` unless a plot can be drawn into a file of this name."""
    if missing_modules(("matplotlib",)):
        raise InputError(
            f"--plot {path} was given; matplotlib is not installed. Run: pip install "
            "'perfuse[bench]'"
        )
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"--plot {path} was given; name a .png or a .svg.")
    check_folder("--plot", path)


def save_plot(rows: "Sequence[Row]", path: Path) -> None:
    """Draw time against quality: fewer steps as a line, each way with transforms as a mark."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ways = [row for row in rows if row.transforms]
    figure = Figure(figsize=(7, 4.2 + 0.2 * len(ways)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    share = all(row.right is not None for row in rows)

    def quality(row: "Row") -> float:
        return 100 * row.right / row.pictures if share and row.right is not None else row.ssim

    line = sorted((1 / row.speed, quality(row), row.steps) for row in rows if not row.transforms)
    axes.plot(*_columns(line)[:2], color="grey", marker="o", label="fewer steps")
    for x, y, steps in line:
        axes.annotate(f"{steps}", (x, y), (4, -11), textcoords="offset points", color="grey")
    for row in ways:
        axes.plot(1 / row.speed, quality(row), marker="D", linestyle="", label=row.name)
    axes.set_xlabel("time a picture, 1 for the plain pipeline")
    axes.set_ylabel("captions drawn right, %" if share else "SSIM with the plain pictures")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="small")
    figure.savefig(path)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True))
