"""Tangential classifier-free guidance (Kwon et al. 2025, arXiv:2503.18137)."""

from dataclasses import dataclass

from perfuse.arrays import dot
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.contrast import Contrast, pushed

__all__ = ["TangentialClassifierFreeGuidance"]

_SMALLEST = 1e-24  # of a squared length


@dataclass(frozen=True, kw_only=True)
class TangentialClassifierFreeGuidance(Contrast):
    """Classifier-free guidance from the part of ``u`` that lies in the main direction of ``c, u``."""

    def guided(self, conditional: Array, without: Array) -> Array:
        original = self.use_original_formulation
        tangential = _along_main_direction(conditional, without)
        return pushed(conditional, tangential, self.guidance_scale, original=original)


def _along_main_direction(conditional: Array, without: Array) -> Array:
    """``u`` projected on the first right singular vector of the rows ``c`` and ``u``.

    That vector is ``x c + y u``, where ``(x, y)`` is the main eigenvector of the 2 by 2 matrix of
    inner products, which has a closed form.
    """
    cc, cu, uu = dot(conditional, conditional), dot(conditional, without), dot(without, without)
    largest = (cc + uu) / 2 + (((cc - uu) / 2) ** 2 + cu**2) ** 0.5
    # Two forms of the same eigenvector; the one that subtracts nothing of nearly equal size.
    first = cc >= uu
    x = first * (largest - uu) + ~first * cu
    y = first * cu + ~first * (largest - cc)
    main = x * conditional + y * without
    return dot(without, main) / dot(main, main).clip(min=_SMALLEST) * main
