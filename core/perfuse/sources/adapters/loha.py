"""LoHa: the elementwise product of two matrices of low rank."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse.sources.adapters.delta import Array, Delta, with_core

__all__ = ["LoHa"]

Factor = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True, eq=False)
class LoHa(Delta):
    """``W + s (A₁ B₁) ∘ (A₂ B₂)``, FedPara (Hyeon-Woo et al. 2021, arXiv:2108.06098, section 2.2).

    For a convolution, each of the two may be ``T ×₁ A ×₂ B``, with a core ``T`` [r, r, height, width],
    ``A`` [r, out] and ``B`` [r, in] (its proposition 3).
    """

    #: ``A₁, B₁`` and ``A₂, B₂``: [out, r] and [r, in].
    first: tuple[Factor, Factor]
    second: tuple[Factor, Factor]
    #: The two cores of a convolution.
    cores: tuple[Factor, Factor] | None = None

    @property
    def rank(self) -> int:
        return len(self.first[1])

    @property
    def size(self) -> tuple[int, int]:
        a, b = self.first
        if self.cores is None:
            return len(a), math.prod(b.shape[1:])
        return a.shape[1], b.shape[1] * math.prod(self.cores[0].shape[2:])

    def fits(self, shape: tuple[int, ...]) -> bool:
        cores = self.cores if self.cores is not None else (None, None)
        pairs = zip((self.first, self.second), cores, strict=True)
        same = [one.shape for one in self.first] == [one.shape for one in self.second]
        return same and all(_join(*pair, core) for pair, core in pairs) and super().fits(shape)

    def product(self, factor: float) -> Array:
        if self.cores is None:
            one, other = (_plain(*pair) for pair in (self.first, self.second))
        else:
            pairs = zip(self.cores, (self.first, self.second), strict=True)
            one, other = (with_core(core, *pair) for core, pair in pairs)
        one *= other
        one *= factor
        return one


def _join(a: Factor, b: Factor, core: Factor | None) -> bool:
    """Whether the ranks of factors agree."""
    if core is None:
        return a.shape[1:] == b.shape[:1]
    return core.ndim == 4 and core.shape[:2] == (len(a), len(b))


def _plain(a: Factor, b: Factor) -> Array:
    product: Array = np.asarray(a, dtype=np.float32) @ np.asarray(b, dtype=np.float32)
    return product
