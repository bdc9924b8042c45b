"""Guidance by an instruction and by a picture (Brooks et al. 2022, arXiv:2211.09800, eq. 3)."""

from collections.abc import Mapping
from dataclasses import dataclass

from perfuse.contract.guider import Branch, Guider, Moment
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.contrast import rescaled
from perfuse.tasks.guiders.numbers import check_fraction, check_number

__all__ = ["InstructPix2PixGuidance"]

_BOTH = Branch(name="positive", condition="positive")
_PICTURE = Branch(name="picture", condition="negative")
_NEITHER = Branch(name="neither", condition="neither")


@dataclass(frozen=True, kw_only=True)
class InstructPix2PixGuidance(Guider):
    """``n + i (p - n) + g (b - p)``: from neither past the picture, and on past both."""

    #: ``g``. No guidance at 1.
    guidance_scale: float = 7.5
    #: ``i``. No guidance below 1.
    image_guidance_scale: float = 1.5
    #: How far to rescale the result to the standard deviation of the prediction with both, 0 to 1.
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        check_number("guidance_scale", self.guidance_scale)
        check_number("image_guidance_scale", self.image_guidance_scale)
        check_fraction("guidance_rescale", self.guidance_rescale)

    @property
    def branches(self) -> tuple[Branch, ...]:
        if self.guidance_scale > 1.0 and self.image_guidance_scale >= 1.0:
            return (_BOTH, _PICTURE, _NEITHER)
        return (_BOTH,)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        both = predictions["positive"]
        if "neither" not in predictions:
            return both
        picture, neither = predictions["picture"], predictions["neither"]
        guided = neither + self.guidance_scale * (both - picture)
        guided = guided + self.image_guidance_scale * (picture - neither)
        return rescaled(guided, both, self.guidance_rescale)
