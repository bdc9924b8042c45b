"""Guidance inside the denoiser (Meng et al. 2023, arXiv:2210.03142)."""

from collections.abc import Mapping
from dataclasses import dataclass

from perfuse.contract.guider import Branch, Guider, Moment
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.contrast import NEGATIVE, POSITIVE, pushed
from perfuse.tasks.guiders.numbers import check_number

__all__ = ["EmbeddedGuidance"]


@dataclass(frozen=True, kw_only=True)
class EmbeddedGuidance(Guider):
    """For a guidance-distilled denoiser, which takes the scale as an input: one branch.

    With a ``true_cfg_scale`` above 1 the negative prompt runs, too, and the prediction goes from it
    past the prompt's, as in ``ClassifierFreeGuidance``.
    """

    guidance_scale: float = 7.5
    true_cfg_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("guidance_scale", self.guidance_scale)
        check_number("true_cfg_scale", self.true_cfg_scale)

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (NEGATIVE, POSITIVE) if self.true_cfg_scale > 1 else (POSITIVE,)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        if self.true_cfg_scale <= 1:
            return predictions["positive"]
        return pushed(predictions["positive"], predictions["negative"], self.true_cfg_scale)

    @property
    def embedded(self) -> float | None:
        return self.guidance_scale
