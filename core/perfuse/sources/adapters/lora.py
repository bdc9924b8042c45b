"""LoRA: a matrix of low rank, also for convolutions."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfuse.sources.adapters.delta import Array, Delta, matrix, with_core

__all__ = ["LoRA"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LoRA(Delta):
    """``W + s B A`` (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    For a convolution, ``A`` is one with the layer's kernel and ``B`` one of 1×1; with a convolution
    between two of 1×1 (LyCORIS, Yeh et al. 2023, arXiv:2309.14859, section 3.2), that has the kernel.
    """

    #: ``A`` [r, in] or [r, in, height, width].
    down: NDArray[np.generic]
    #: ``B`` [out, r] or [out, r, 1, 1].
    up: NDArray[np.generic]
    #: What is between them [r, r, height, width].
    mid: NDArray[np.generic] | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def size(self) -> tuple[int, int]:
        kernel = 1 if self.mid is None else math.prod(self.mid.shape[2:])
        return len(self.up), math.prod(self.down.shape[1:]) * kernel

    def fits(self, shape: tuple[int, ...]) -> bool:
        inner = self.up.size // len(self.up)
        joined = (
            inner == self.rank if self.mid is None else self.mid.shape[:2] == (inner, self.rank)
        )
        return joined and super().fits(shape)

    def taking(self, rows: NDArray[np.intp]) -> Delta:
        return replace(self, up=self.up[rows])

    def factors(self, strength: float) -> tuple[Array, Array] | None:
        if self.mid is not None:
            return None
        return np.array(self.down, np.float32), matrix(self.up) * (strength * self.scale)

    def product(self, factor: float) -> Array:
        up = matrix(self.up)
        up *= factor
        if self.mid is None:
            product: Array = up @ matrix(self.down)
            return product
        return with_core(self.mid, up.T, matrix(self.down))
