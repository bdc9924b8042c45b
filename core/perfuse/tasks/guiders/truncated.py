"""Classifier-free guidance that ends early and cannot grow: Z-Image's (arXiv:2511.22699)."""

from dataclasses import dataclass

from perfuse.arrays import dot
from perfuse.contract.guider import Moment
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.contrast import Contrast, pushed
from perfuse.tasks.guiders.numbers import check_number

__all__ = ["TruncatedGuidance"]

_TRAINED_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class TruncatedGuidance(Contrast):
    """``c + g (c - u)``, for as long as enough noise is left, and no larger than allowed.

    A scale of 0 or less draws without guidance.
    """

    guidance_scale: float = 5.0
    use_original_formulation: bool = True
    #: The share of the noise that is gone, 0 to 1, from which on there is no guidance.
    truncation: float = 1.0
    #: The largest norm of a prediction, as a multiple of the one with the prompt; 0 for any.
    normalization: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("truncation", self.truncation)
        check_number("normalization", self.normalization)

    @property
    def changes(self) -> bool:
        neutral = 0.0 if self.use_original_formulation else 1.0
        return self.enabled and self.guidance_scale > neutral

    def running(self, moment: Moment) -> tuple[str, ...]:
        gone = (_TRAINED_STEPS - moment.timestep) / _TRAINED_STEPS
        return ("positive",) if gone > self.truncation else super().running(moment)

    def guided(self, conditional: Array, without: Array) -> Array:
        original = self.use_original_formulation
        guided = pushed(conditional, without, self.guidance_scale, original=original)
        if self.normalization <= 0:
            return guided
        most = dot(conditional, conditional) ** 0.5 * self.normalization
        return guided * (most / dot(guided, guided) ** 0.5).clip(max=1.0)
