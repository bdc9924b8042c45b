"""MAMBO-G, magnitude-aware guidance (arXiv:2508.03442)."""

import math
from dataclasses import dataclass

from perfuse.arrays import dot
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.contrast import Contrast, pushed
from perfuse.tasks.guiders.numbers import check_number

__all__ = ["MagnitudeAwareGuidance"]


@dataclass(frozen=True, kw_only=True)
class MagnitudeAwareGuidance(Contrast):
    """Classifier-free guidance whose scale falls where ``c - u`` is large compared with ``u``."""

    guidance_scale: float = 10.0
    #: How fast the scale falls.
    alpha: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha)

    def guided(self, conditional: Array, without: Array) -> Array:
        shift = conditional - without
        ratio = (dot(shift, shift) / dot(without, without)) ** 0.5
        fall = math.e ** (-self.alpha * ratio)
        if self.use_original_formulation:
            return pushed(conditional, without, self.guidance_scale * fall, original=True)
        return pushed(conditional, without, 1.0 + (self.guidance_scale - 1.0) * fall)
