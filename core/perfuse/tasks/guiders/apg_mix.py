"""Classifier-free guidance first, adaptive projected guidance then, as HunyuanImage 2.1 draws.

The projection is Sadat et al.'s (2024, arXiv:2410.02416).
"""

import math
from dataclasses import dataclass

from perfuse.contract.guider import Moment
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.contrast import pushed
from perfuse.tasks.guiders.numbers import check_count, check_number
from perfuse.tasks.guiders.projection import Projected, limited, weighted

__all__ = ["AdaptiveProjectedMixGuidance"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveProjectedMixGuidance(Projected):
    """``u + g (c - u)`` in the first steps, and a projected shift with its own scale after them."""

    guidance_scale: float = 3.5
    #: The scale of the projected shift.
    adaptive_projected_guidance_scale: float = 10.0
    #: The weight of earlier steps in the average of the shift; ``None`` for no average.
    adaptive_projected_guidance_momentum: float | None = -0.5
    #: The averaged shift is at most this long; 0 for no limit.
    adaptive_projected_guidance_rescale: float = 10.0
    #: The weight of the part of the shift that is parallel to the conditional prediction.
    eta: float = 0.0
    #: The last step, from 0, of classifier-free guidance.
    adaptive_projected_guidance_start_step: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("adaptive_projected_guidance_scale", self.adaptive_projected_guidance_scale)
        last = self.adaptive_projected_guidance_start_step
        check_count("adaptive_projected_guidance_start_step", last)

    def shifted(self, conditional: Array, without: Array, shift: Array, moment: Moment) -> Array:
        if not self._projects(moment):
            return self.guided(conditional, without)
        short = limited(shift, self.adaptive_projected_guidance_rescale)
        base = conditional if self.use_original_formulation else without
        scale = self.adaptive_projected_guidance_scale
        return base + scale * weighted(short, conditional, self.eta)

    def _projects(self, moment: Moment) -> bool:
        neutral = 0.0 if self.use_original_formulation else 1.0
        late = moment.index > self.adaptive_projected_guidance_start_step
        return late and not math.isclose(self.adaptive_projected_guidance_scale, neutral)

    def guided(self, conditional: Array, without: Array) -> Array:
        original = self.use_original_formulation
        return pushed(conditional, without, self.guidance_scale, original=original)
