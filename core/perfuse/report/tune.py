"""What ``perfuse tune`` tried: a table, and a plot of time against quality."""

from pathlib import Path
from typing import TYPE_CHECKING

from perfuse.report.console import console, safe

if TYPE_CHECKING:
    from perfuse.run.tuning import Found

__all__ = ["print_points", "save_points"]


def print_points(found: "Found") -> None:
    """Print a line for each point, the fastest first, and why others could not be tried."""
    rows = sorted(found.rows.items(), key=lambda pair: pair[1].seconds)
    width = max(len(point.name) for point in found.rows)
    for point, row in rows:
        mark = "*" if point == found.chosen else " "
        psnr = f"{row.psnr:.1f} dB" if row.psnr < 100 else ""
        console().print(
            f"{mark} {safe(point.name):{width}}  {row.seconds:8.3g} s  {row.speed:5.2f}×  "
            f"SSIM {row.ssim:.3f}  {psnr}".rstrip()
        )
    for point, why in found.refused.items():
        console().print(f"  {safe(point.name)}: {safe(why)}")


def save_points(found: "Found", path: Path) -> None:
    """Draw time against quality, a mark for each point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2 + 0.2 * len(found.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for point, row in found.rows.items():
        marker = "*" if point == found.chosen else "o"
        axes.plot(row.seconds, row.ssim, marker=marker, linestyle="", label=point.name)
    axes.set_xlabel("seconds a picture")
    axes.set_ylabel("SSIM with the first one's pictures")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="small")
    figure.savefig(path)
