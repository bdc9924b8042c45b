"""What guiders share that contrast the predictions with and without the prompt."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from perfuse.arrays import std
from perfuse.contract.guider import Branch, Guider, Moment
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.numbers import check_fraction, check_interval, check_number

__all__ = ["NEGATIVE", "POSITIVE", "Contrast", "is_within", "pushed", "rescaled"]

NEGATIVE = Branch(name="negative", condition="negative")
POSITIVE = Branch(name="positive", condition="positive")


@dataclass(frozen=True, kw_only=True)
class Contrast(Guider):
    """Guidance by the predictions with the prompt, ``c``, and without it, ``u``.

    A subclass says how both become one: ``guided``. Fields and defaults are those of Diffusers'.
    """

    #: ``g``: how far to go from ``u`` past ``c``. 1 changes nothing; with the original formulation 0.
    guidance_scale: float = 7.5
    #: How far to rescale the result to the standard deviation of ``c``, 0 to 1 (Lin et al. 2023,
    #: arXiv:2305.08891, section 3.4).
    guidance_rescale: float = 0.0
    #: Whether to start at ``c``, as in the paper of classifier-free guidance, instead of ``u``.
    use_original_formulation: bool = False
    #: The fraction of the steps, 0 to 1, at which guidance starts.
    start: float = 0.0
    #: The fraction at which guidance stops (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    stop: float = 1.0
    #: Whether there is guidance at all.
    enabled: bool = True

    def __post_init__(self) -> None:
        check_number("guidance_scale", self.guidance_scale)
        check_fraction("guidance_rescale", self.guidance_rescale)
        check_interval("start", self.start, "stop", self.stop)

    @property
    def changes(self) -> bool:
        """Whether this scale changes anything."""
        neutral = 0.0 if self.use_original_formulation else 1.0
        return self.enabled and not math.isclose(self.guidance_scale, neutral)

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (NEGATIVE, POSITIVE) if self.changes else (POSITIVE,)

    def running(self, moment: Moment) -> tuple[str, ...]:
        if self.changes and is_within(moment, self.start, self.stop):
            return ("negative", "positive")
        return ("positive",)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        conditional = predictions["positive"]
        if "negative" not in predictions:
            return conditional
        guided = self.guided(conditional, predictions["negative"])
        return rescaled(guided, conditional, self.guidance_rescale)

    @abstractmethod
    def guided(self, conditional: Array, without: Array) -> Array:
        """One prediction of those with and without the prompt, each float32 [pictures, …]."""


def is_within(moment: Moment, start: float, stop: float) -> bool:
    """Whether a step lies between two fractions of all steps."""
    return int(start * moment.total) <= moment.index < int(stop * moment.total)


def pushed(
    conditional: Array, without: Array, scale: float | Array, *, original: bool = False
) -> Array:
    """``u + g (c - u)``, or ``c + g (c - u)`` in the original formulation."""
    base = conditional if original else without
    return base + scale * (conditional - without)


def rescaled(guided: Array, conditional: Array, amount: float) -> Array:
    """Rescale a guided prediction [B, …] to the conditional one's standard deviation.

    Args:
        guided: The guided prediction.
        conditional: The prediction with the prompt, of the same shape.
        amount: 0 for ``guided`` as it is, 1 for the full rescaling.
    """
    if amount <= 0.0:
        return guided
    full = guided * (std(conditional) / std(guided))
    return amount * full + (1 - amount) * guided
