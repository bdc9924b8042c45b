"""No guidance."""

from collections.abc import Mapping
from dataclasses import dataclass

from perfuse.contract.guider import Branch, Guider, Moment
from perfuse.contract.spec import Array

__all__ = ["NoGuidance"]


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Guider):
    """The prediction as it is."""

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (Branch(name="positive", condition="positive"),)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        return predictions["positive"]
