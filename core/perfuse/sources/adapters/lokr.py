"""LoKr: the Kronecker product of a small matrix and one of low rank."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse.sources.adapters.delta import Array, Delta, with_core

__all__ = ["LoKr"]

Factor = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True, eq=False)
class LoKr(Delta):
    """``W + s C₁ ⊗ C₂`` (Edalati et al. 2022, arXiv:2212.10650; LyCORIS, arXiv:2309.14859, 3.3).

    Each factor is stored whole, as one array, or as two of low rank, ``A B``; the second, of a
    convolution, also with a core ``T`` [r, r, height, width], as ``T ×₁ A ×₂ B``.
    """

    #: ``C₁`` [a, c], as one array or two.
    first: tuple[Factor, ...]
    #: ``C₂`` [b, d] or [b, d, height, width], as one array, two, or two and a core.
    second: tuple[Factor, ...]

    @property
    def rank(self) -> int:
        factors = [one for one in (self.first, self.second) if len(one) > 1]
        return len(factors[-1][1]) if factors else min(self.second[0].shape[:2])

    @property
    def size(self) -> tuple[int, int]:
        a, c = self.first[0].shape[0], self.first[-1].shape[1]
        if len(self.second) == 3:
            left, right, core = self.second
            b, d = left.shape[1], right.shape[1] * math.prod(core.shape[2:])
        else:
            b, d = self.second[0].shape[0], math.prod(self.second[-1].shape[1:])
        return a * b, c * d

    def fits(self, shape: tuple[int, ...]) -> bool:
        return _join(self.first) and _join(self.second) and super().fits(shape)

    def product(self, factor: float) -> Array:
        first, second = _whole(self.first), _whole(self.second)
        product: Array = np.kron(first.reshape(first.shape + (1,) * (second.ndim - 2)), second)
        product *= factor
        return product


def _join(factors: tuple[Factor, ...]) -> bool:
    """Whether the ranks of factors agree."""
    if len(factors) == 3:
        left, right, core = factors
        return core.ndim == 4 and core.shape[:2] == (len(left), len(right))
    return len(factors) == 1 or factors[0].shape[1:] == factors[1].shape[:1]


def _whole(factors: tuple[Factor, ...]) -> Array:
    if len(factors) == 3:
        left, right, core = factors
        return with_core(core, left, right)
    product = np.asarray(factors[0], dtype=np.float32)
    for factor in factors[1:]:
        product = product @ np.asarray(factor, dtype=np.float32)
    return product
