"""Guidance: which conditions the denoiser runs with at a step, and how predictions combine."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Branch", "Guider", "Moment", "Perturbation"]

Array = Any


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """A worse version of the denoiser: the same weights, with some of its layers changed."""

    #: What is changed: a word that the denoiser's architecture knows (``Architecture.perturb``).
    kind: str
    #: The layers, each by a part of its name or a regular expression: ``("mid",)``.
    layers: tuple[str, ...]
    #: How much, where the kind has degrees.
    amount: float = 0.0

    @property
    def entry(self) -> str:
        """The name of its component; where the layers are not one word, with a hash."""
        simple = self.amount == 0 and len(self.layers) == 1
        if simple and re.fullmatch(r"[a-z]+ \w+", f"{self.kind} {self.layers[0]}", re.ASCII):
            return f"perturbed_{self.kind}_{self.layers[0]}"
        digest = hashlib.sha256(repr((self.kind, self.layers, self.amount)).encode())
        return f"perturbed_{self.kind}_{digest.hexdigest()[:8]}"

    @property
    def text(self) -> str:
        """The transform that adds it to a pipeline, and so to an export."""
        amount = f",amount={self.amount!r}" if self.amount else ""
        return f"perturbed:kind={self.kind},layers={'+'.join(self.layers)}{amount}"


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One evaluation of the denoiser at a step, with one set of conditions."""

    name: str
    #: The conditions to run with: ``"positive"``, ``"negative"`` (the negative prompt, if given) or
    #: ``"empty"`` (an empty prompt). A task may define more.
    condition: str
    #: The denoiser's other entry to run (``ComponentSpec.entry_of``); ``None`` for the denoiser.
    entry: str | None = None
    #: A worse version of the denoiser to run; the pipeline makes it, as another entry.
    perturbation: Perturbation | None = None


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

    def combine_with_memory(
        self, predictions: Mapping[str, Array], moment: Moment, memory: Any
    ) -> tuple[Array, Any]:
        """Combine the predictions, and say what to remember until the next step.

        For a guider whose result depends on earlier steps; a run of the loop begins with a memory of
        ``None``. By default nothing is remembered, and ``combine`` is called.
        """
        return self.combine(predictions, moment), memory

    @property
    def embedded(self) -> float | None:
        """The scale to pass to a denoiser with embedded guidance; ``None`` for no guidance."""
        return None
