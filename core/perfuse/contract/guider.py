"""Guidance: which branches of conditions run at a step, and what their predictions become."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Branch", "Guider", "Moment"]

Array = Any


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One way in which the denoiser is asked at a step."""

    name: str
    #: Which conditions it is asked with: ``"positive"``, ``"negative"`` (the negative prompt, or
    #: nothing) or ``"empty"`` (no words). A task may know more.
    condition: str
    #: The entry of the denoiser that is asked; ``None`` for the denoiser itself.
    entry: str | None = None


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where the loop is."""

    #: The step, from 0.
    index: int
    #: How many steps there are.
    total: int
    #: What the denoiser is told.
    timestep: float

    @property
    def done(self) -> float:
        """How much of the loop lies behind, 0 to 1."""
        return self.index / self.total


class Guider(ABC):
    """Says which branches run at each step, and combines what they predict.

    Subclasses are frozen dataclasses: their fields are the method's settings.
    """

    @property
    @abstractmethod
    def branches(self) -> tuple[Branch, ...]:
        """Every branch that may run, in the order in which they are batched."""

    def running(self, moment: Moment) -> tuple[str, ...]:
        """The names of those that run at a step, in the order of ``branches``. At least one.

        A branch that does not run costs nothing.
        """
        return tuple(branch.name for branch in self.branches)

    @abstractmethod
    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        """One prediction from those of the branches that ran, each [pictures, …]; float32."""

    @property
    def embedded(self) -> float | None:
        """The scale that a denoiser with embedded guidance is told; ``None`` for no guidance."""
        return None
