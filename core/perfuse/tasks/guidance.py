"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) and its rescaling."""

import math
import numbers
from dataclasses import dataclass

from perfuse.arrays.operations import std
from perfuse.contract.spec import Array
from perfuse.errors import InputError

__all__ = ["Guidance"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How the predictions without and with the prompt become one."""

    scale: float = 7.5
    #: How far to pull the result back to the spread of the conditional prediction, 0 to 1
    #: (Lin et al. 2023, arXiv:2305.08891, section 3.4).
    rescale: float = 0.0
    #: Whether the denoiser takes the scale as an input instead, as LCM does.
    embedded: bool = False

    def __post_init__(self) -> None:
        for name in ("scale", "rescale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise InputError(f"guidance_{name} must be a number; got {value!r}.")
        if not math.isfinite(self.scale):
            raise InputError(f"guidance_scale must be a finite number; got {self.scale!r}.")
        if not 0.0 <= self.rescale <= 1.0:
            raise InputError(f"guidance_rescale must be between 0 and 1; got {self.rescale!r}.")

    @property
    def branches(self) -> int:
        """Predictions a step: two, or one where guidance would change nothing."""
        return 2 if self.scale > 1 and not self.embedded else 1

    def combine(self, prediction: Array) -> Array:
        """``[without | with the prompt]`` along the batch to one prediction.

        >>> import numpy as np
        >>> Guidance(scale=3.0).combine(np.array([[1.0], [2.0]]))
        array([[4.]])
        """
        if self.branches == 1:
            return prediction
        half = len(prediction) // 2
        without, conditional = prediction[:half], prediction[half:]
        guided = without + self.scale * (conditional - without)
        if self.rescale <= 0.0:
            return guided
        rescaled = guided * (std(conditional) / std(guided))
        return self.rescale * rescaled + (1 - self.rescale) * guided
