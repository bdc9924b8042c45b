"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

from dataclasses import dataclass

from perfuse.contract.spec import Array
from perfuse.tasks.guiders.contrast import Contrast, pushed

__all__ = ["ClassifierFreeGuidance"]


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance(Contrast):
    """``u + g (c - u)``: from the unconditional prediction ``u`` past the conditional one ``c``.

    A scale of 1 or less, or 0 or less with the original formulation, draws without guidance, as in
    Diffusers' pipelines: one denoiser call a step.

    >>> import numpy as np
    >>> from perfuse import Moment
    >>> moment = Moment(index=0, total=10, timestep=999.0)
    >>> both = {"negative": np.array([[1.0]]), "positive": np.array([[2.0]])}
    >>> ClassifierFreeGuidance(guidance_scale=3.0).combine(both, moment)
    array([[4.]])
    """

    @property
    def changes(self) -> bool:
        neutral = 0.0 if self.use_original_formulation else 1.0
        return self.enabled and self.guidance_scale > neutral

    def guided(self, conditional: Array, without: Array) -> Array:
        original = self.use_original_formulation
        return pushed(conditional, without, self.guidance_scale, original=original)
