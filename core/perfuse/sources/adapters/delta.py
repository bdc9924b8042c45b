"""What an adapter makes of one weight: the base of every kind."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Delta", "matrix", "with_core"]

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Delta(ABC):
    """What an adapter adds to one weight [out, in] or [out, in, height, width]."""

    #: What the file multiplies it by: alpha / rank.
    scale: float = 1.0

    @property
    @abstractmethod
    def rank(self) -> int:
        """The rank of its factors."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Rows and columns of the weight that it is for; a convolution's kernel counts as columns."""

    @abstractmethod
    def product(self, factor: float) -> Array:
        """What is added, times a factor: an array of as many elements as the weight, in its order."""

    def applied(self, weight: Array, base: Array, strength: float) -> Array:
        """A weight with this in it, as a new array.

        Args:
            weight: The weight, which may have other adapters in it.
            base: The weight of the checkpoint.
            strength: How much the user has this count.
        """
        added = self.product(strength * self.scale).reshape(base.shape)
        return np.add(weight, added, out=added)

    def factors(self, strength: float) -> tuple[Array, Array] | None:
        """``A`` [r, in, …] and ``B`` [out, r] whose product is added; ``None`` if it is none.

        Args:
            strength: How much the user has this count; ``B`` has it.
        """
        return None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is for a weight of this shape."""
        return len(shape) > 1 and self.size == (shape[0], math.prod(shape[1:]))

    def taking(self, rows: NDArray[np.intp]) -> "Delta":
        """What it adds to some rows, by their numbers: those of one of several stacked layers."""
        return _Rows(inner=self, rows=rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows(Delta):
    """Some rows of a change."""

    inner: Delta
    #: Their numbers.
    rows: NDArray[np.intp]

    @property
    def rank(self) -> int:
        return min(self.inner.rank, *self.size)

    @property
    def size(self) -> tuple[int, int]:
        return len(self.rows), self.inner.size[1]

    def product(self, factor: float) -> Array:
        whole = self.inner.product(factor * self.inner.scale).reshape(self.inner.size)
        return whole[self.rows]


def matrix(array: NDArray[np.generic]) -> Array:
    """A copy of an array as a float32 matrix, its first axis the rows."""
    return np.array(array, dtype=np.float32).reshape(len(array), -1)


def with_core(
    core: NDArray[np.generic], left: NDArray[np.generic], right: NDArray[np.generic]
) -> Array:
    """``T ×₁ A ×₂ B``: a core [r, r, height, width] with [r, out] and [r, in] on its first two axes.

    Returns:
        [out, in, height, width].
    """
    arrays = (np.asarray(one, dtype=np.float32) for one in (core, left, right))
    product: Array = np.einsum("abhw,ao,bi->oihw", *arrays, optimize=True)
    return product
