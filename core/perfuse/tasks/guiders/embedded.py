"""Guidance inside the denoiser (Meng et al. 2023, arXiv:2210.03142)."""

from collections.abc import Mapping
from dataclasses import dataclass

from perfuse.contract.guider import Branch, Guider, Moment
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.numbers import check_number

__all__ = ["EmbeddedGuidance"]


@dataclass(frozen=True, kw_only=True)
class EmbeddedGuidance(Guider):
    """For a guidance-distilled denoiser, which takes the scale as an input: one branch."""

    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        check_number("guidance_scale", self.guidance_scale)

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (Branch(name="positive", condition="positive"),)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        return predictions["positive"]

    @property
    def embedded(self) -> float | None:
        return self.guidance_scale
