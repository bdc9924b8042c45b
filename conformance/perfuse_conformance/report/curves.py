"""The geometry of a plot of errors along a trajectory: steps across, error over limit upwards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

__all__ = ["Curve", "Mark", "Plot", "plot"]

WIDTH, HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 34
#: Below a millionth of the limit nothing is worth telling apart.
_FLOOR = -6.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A labelled place on an axis, in pixels."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One backend's errors."""

    #: The style class in the page's CSS.
    style: int
    label: str
    #: The stretches without a gap: each the ``points`` of an SVG polyline.
    lines: tuple[str, ...]
    #: ``(x, y, step from 0, error over limit)`` of each number.
    points: tuple[tuple[float, float, int, float], ...]
    #: Where the error is not a number: x, and the step.
    gaps: tuple[tuple[float, int], ...]
    #: The largest error over the limit, and its step; ``None`` where none is a number.
    worst: tuple[float, int] | None


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Everything that a template needs to draw it, in pixels."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    #: Where an error uses up the limit.
    limit: float
    rows: tuple[Mark, ...]
    columns: tuple[Mark, ...]
    curves: tuple[Curve, ...]


def plot(series: Sequence[tuple[int, str, Sequence[float | None]]]) -> Plot:
    """Lay out curves in one plot with a logarithmic axis that holds the limit.

    Args:
        series: Of each curve the style, the label and the errors over the limit, one a step;
            ``None`` where it is not a number.
    """
    finite = [v for _, _, errors in series for v in errors if _is_number(v)]
    logs = [max(math.log10(v), _FLOOR) if v > 0 else _FLOOR for v in finite]
    low = math.floor(min([*logs, -1.0]))
    high = max([*logs, 0.0]) + 0.25
    steps = max((len(errors) for _, _, errors in series), default=1)
    left, right = float(_LEFT), float(WIDTH - _RIGHT)
    top, bottom = float(_TOP), float(HEIGHT - _BOTTOM)

    def x(step: int) -> float:
        return round(left + 8 + (right - left - 16) * (step / max(steps - 1, 1)), 1)

    def y(log: float) -> float:
        return round(bottom - (bottom - top) * (log - low) / (high - low), 1)

    curves = []
    for style, label, errors in series:
        points = [
            (x(step), y(max(math.log10(v), _FLOOR) if v > 0 else low), step, float(v))
            for step, v in enumerate(errors)
            if _is_number(v)
        ]
        gaps = tuple((x(step), step) for step, v in enumerate(errors) if not _is_number(v))
        worst = max(((p[3], p[2]) for p in points), default=None)
        curves.append(
            Curve(
                style=style,
                label=label,
                lines=_stretches(points),
                points=tuple(points),
                gaps=gaps,
                worst=worst,
            )
        )
    every = max(math.ceil((high - low) / 6), 1)
    rows = [Mark(at=y(d), label=_power(d)) for d in range(int(low), math.floor(high) + 1, every)]
    stride = max(math.ceil(steps / 10), 1)
    columns = [Mark(at=x(step), label=str(step + 1)) for step in range(0, steps, stride)]
    return Plot(
        width=WIDTH,
        height=HEIGHT,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        limit=y(0.0),
        rows=tuple(rows),
        columns=tuple(columns),
        curves=tuple(curves),
    )


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _stretches(points: Sequence[tuple[float, float, int, float]]) -> tuple[str, ...]:
    stretches: list[list[str]] = []
    before: int | None = None
    for x, y, step, _ in points:
        if before is None or step != before + 1:
            stretches.append([])
        stretches[-1].append(f"{x},{y}")
        before = step
    return tuple(" ".join(stretch) for stretch in stretches)


def _power(exponent: int) -> str:
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}×"
    return f"1e{exponent}×"
