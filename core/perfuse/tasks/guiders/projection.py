"""Guidance without what only makes a prediction larger (Sadat et al. 2024, arXiv:2410.02416)."""

from typing import Any

from perfuse.arrays import dot
from perfuse.contract.spec import Array

__all__ = ["averaged", "limited", "weighted"]

_SMALLEST = 1e-24  # of a squared length


def limited(shift: Array, longest: float, axes: tuple[int, ...] | None = None) -> Array:
    """Each item of [B, …] shortened to a length of at most ``longest``; as it is where that is 0."""
    if longest <= 0:
        return shift
    length = dot(shift, shift, axes) ** 0.5
    return shift * (longest / length.clip(min=longest))


def weighted(
    shift: Array, conditional: Array, weight: float, axes: tuple[int, ...] | None = None
) -> Array:
    """The shift with its part that is parallel to the conditional prediction weighted.

    Args:
        shift: What guidance adds, [B, …].
        conditional: The prediction with the prompt, of the same shape.
        weight: Of the parallel part: 1 leaves the shift as it is, 0 leaves the part out.
        axes: The axes of the vectors; all but the first by default.
    """
    squared = dot(conditional, conditional, axes).clip(min=_SMALLEST)
    parallel = dot(shift, conditional, axes) / squared * conditional
    return shift + (weight - 1.0) * parallel


def averaged(shift: Array, momentum: float | None, memory: Array | None) -> tuple[Array, Any]:
    """The average of a shift and the earlier ones, and what to remember; without momentum neither.

    Args:
        shift: ``c - u`` of this step.
        momentum: The weight of the earlier steps; ``None`` for no average.
        memory: The average so far; ``None`` in the first step.
    """
    if momentum is None:
        return shift, memory
    mean = shift if memory is None else shift + momentum * memory
    return mean, mean
