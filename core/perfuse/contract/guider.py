"""Guidance: which conditions the denoiser runs with at a step, and how predictions combine."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Branch", "Guider", "Moment"]

Array = Any


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One evaluation of the denoiser at a step, with one set of conditions."""

    name: str
    #: The conditions to run with: ``"positive"``, ``"negative"`` (the negative prompt, if given) or
    #: ``"empty"`` (an empty prompt). A task may define more.
    condition: str
    #: The denoiser's other entry to run (``ComponentSpec.entry_of``); ``None`` for the denoiser.
    entry: str | None = None


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A position in the denoising loop."""

    #: The step, from 0.
    index: int
    #: How many steps there are.
    total: int
    #: The timestep that the denoiser is given.
    timestep: float

    @property
    def done(self) -> float:
        """The fraction of the loop that is done, 0 to 1."""
        return self.index / self.total


class Guider(ABC):
    """Chooses which branches run at each step, and combines their predictions.

    Subclasses are frozen dataclasses: their fields are the method's settings.
    """

    @property
    @abstractmethod
    def branches(self) -> tuple[Branch, ...]:
        """Every branch that may run, in the order in which they are batched."""

    def running(self, moment: Moment) -> tuple[str, ...]:
        """The names of the branches that run at a step: at least one, in the order of ``branches``.

        The denoiser is not called for a branch that does not run.
        """
        return tuple(branch.name for branch in self.branches)

    @abstractmethod
    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        """Combine the predictions of the branches that ran, each float32 [pictures, …]."""

    @property
    def embedded(self) -> float | None:
        """The scale to pass to a denoiser with embedded guidance; ``None`` for no guidance."""
        return None
