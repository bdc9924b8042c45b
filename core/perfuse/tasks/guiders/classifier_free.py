"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) and its rescaling."""

from collections.abc import Mapping
from dataclasses import dataclass

from perfuse.arrays import std
from perfuse.contract.guider import Branch, Guider, Moment
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.guiders.numbers import check_fraction, check_number

__all__ = ["ClassifierFreeGuidance", "rescaled"]

_NEGATIVE = Branch(name="negative", condition="negative")
_POSITIVE = Branch(name="positive", condition="positive")


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance(Guider):
    """``u + g (c - u)``: from the unconditional prediction ``u`` past the conditional one ``c``.

    >>> import numpy as np
    >>> moment = Moment(index=0, total=10, timestep=999.0)
    >>> both = {"negative": np.array([[1.0]]), "positive": np.array([[2.0]])}
    >>> ClassifierFreeGuidance(guidance_scale=3.0).combine(both, moment)
    array([[4.]])
    """

    #: ``g``. No guidance, so one denoiser call a step, at 1; with the original formulation at 0.
    guidance_scale: float = 7.5
    #: How far to rescale the result to the standard deviation of the conditional prediction, 0 to 1
    #: (Lin et al. 2023, arXiv:2305.08891, section 3.4).
    guidance_rescale: float = 0.0
    #: Whether to use ``c + g (c - u)``, as in the paper, instead of ``u + g (c - u)``.
    use_original_formulation: bool = False
    #: The fraction of the steps, 0 to 1, at which guidance starts.
    start: float = 0.0
    #: The fraction at which guidance stops (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    stop: float = 1.0

    def __post_init__(self) -> None:
        check_number("guidance_scale", self.guidance_scale)
        check_fraction("guidance_rescale", self.guidance_rescale)
        check_fraction("start", self.start)
        check_fraction("stop", self.stop)
        if self.start > self.stop:
            raise InputError(
                f"Guidance was to run from {self.start} to {self.stop} of the steps; start must not "
                "be larger than stop."
            )

    @property
    def _changes(self) -> bool:
        return self.guidance_scale > (0.0 if self.use_original_formulation else 1.0)

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (_NEGATIVE, _POSITIVE) if self._changes else (_POSITIVE,)

    def running(self, moment: Moment) -> tuple[str, ...]:
        first, last = int(self.start * moment.total), int(self.stop * moment.total)
        if self._changes and first <= moment.index < last:
            return ("negative", "positive")
        return ("positive",)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        conditional = predictions["positive"]
        if "negative" not in predictions:
            return conditional
        without = predictions["negative"]
        base = conditional if self.use_original_formulation else without
        guided = base + self.guidance_scale * (conditional - without)
        return rescaled(guided, conditional, self.guidance_rescale)


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
