"""Guidance without what only makes a prediction larger (Sadat et al. 2024, arXiv:2410.02416)."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfuse.arrays import dot
from perfuse.contract.guider import Moment
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.contrast import Contrast, rescaled
from perfuse.tasks.guiders.numbers import check_number

__all__ = ["Projected", "averaged", "limited", "weighted"]

_SMALLEST = 1e-24  # of a squared length


@dataclass(frozen=True, kw_only=True)
class Projected(Contrast):
    """Guidance by a shift ``c - u`` that is averaged over the steps, limited and projected.

    A subclass says how the averaged shift becomes a prediction: ``shifted``.
    """

    #: ``beta``: the weight of earlier steps in the average of the shift; ``None`` for no average.
    adaptive_projected_guidance_momentum: float | None
    #: ``r``: the shift is at most this long; 0 for no limit.
    adaptive_projected_guidance_rescale: float
    #: ``eta``: the weight of the part of the shift that is parallel to ``c``.
    eta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adaptive_projected_guidance_momentum is not None:
            momentum = self.adaptive_projected_guidance_momentum
            check_number("adaptive_projected_guidance_momentum", momentum)
        longest = self.adaptive_projected_guidance_rescale
        check_number("adaptive_projected_guidance_rescale", longest)
        check_number("eta", self.eta)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        return self.combine_with_memory(predictions, moment, None)[0]

    def combine_with_memory(
        self, predictions: Mapping[str, Array], moment: Moment, memory: Any
    ) -> tuple[Array, Any]:
        """``memory`` is the average of the shifts so far."""
        conditional = predictions["positive"]
        if "negative" not in predictions:
            return conditional, memory
        without = predictions["negative"]
        momentum = self.adaptive_projected_guidance_momentum
        shift, memory = averaged(conditional - without, momentum, memory)
        guided = self.shifted(conditional, without, shift, moment)
        return rescaled(guided, conditional, self.guidance_rescale), memory

    @abstractmethod
    def shifted(self, conditional: Array, without: Array, shift: Array, moment: Moment) -> Array:
        """One prediction of both and the averaged shift, each float32 [pictures, …]."""


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
