"""Classifier-free guidance that keeps the length of each token's prediction: Qwen-Image's."""

from dataclasses import dataclass

from perfuse.arrays import dot
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.classifier_free import ClassifierFreeGuidance
from perfuse.tasks.guiders.contrast import Contrast

__all__ = ["LengthPreservingGuidance"]


@dataclass(frozen=True, kw_only=True)
class LengthPreservingGuidance(Contrast):
    """``u + g (c - u)``, made as long as ``c``, token by token (arXiv:2508.02324, section 5).

    For latents that are packed to tokens [pictures, N, C]. A scale of 1 or less draws without
    guidance.
    """

    guidance_scale: float = 4.0

    @property
    def changes(self) -> bool:
        return self._plain.changes

    @property
    def _plain(self) -> ClassifierFreeGuidance:
        return ClassifierFreeGuidance(
            guidance_scale=self.guidance_scale,
            use_original_formulation=self.use_original_formulation,
            enabled=self.enabled,
        )

    def guided(self, conditional: Array, without: Array) -> Array:
        guided = self._plain.guided(conditional, without)
        last = (conditional.ndim - 1,)
        wanted, found = dot(conditional, conditional, last), dot(guided, guided, last)
        return guided * (wanted**0.5 / found**0.5)
