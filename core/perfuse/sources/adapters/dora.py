"""DoRA: a weight's direction and its magnitude, changed apart."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse.sources.adapters.delta import Array, Delta

__all__ = ["DoRA"]

#: What a norm is at least: rows of nothing but zeros stay so.
_LEAST = np.float32(1e-12)


@dataclass(frozen=True, kw_only=True, eq=False)
class DoRA(Delta):
    """``m (W + s ΔW) / ‖W + s ΔW‖`` (Liu et al. 2024, arXiv:2402.09353, equation 5)."""

    #: What changes the direction.
    inner: Delta
    #: ``m``: a number for each row, or for each column: [1, in, …].
    magnitude: NDArray[np.generic]

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def size(self) -> tuple[int, int]:
        return self.inner.size

    def product(self, factor: float) -> Array:
        return self.inner.product(factor)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.inner.fits(shape) and self.magnitude.size in (shape[0], shape[1])

    def taking(self, rows: NDArray[np.intp]) -> Delta:
        if self.magnitude.size != self.size[0]:
            raise ValueError(
                "its magnitudes are those of columns, over all of these layers at once"
            )
        return DoRA(inner=self.inner.taking(rows), magnitude=self.magnitude.reshape(-1)[rows])

    def applied(self, weight: Array, base: Array, strength: float) -> Array:
        direction = self.inner.applied(base, base, strength)
        norm = np.sqrt(np.square(direction).sum(axis=self._summed(base), keepdims=True))
        magnitude = np.asarray(self.magnitude, dtype=np.float32).reshape(norm.shape)
        # Of several adapters, the later have the norm of the checkpoint's weight, as in PEFT.
        changed: Array = (weight + (direction - base)) * (magnitude / np.maximum(norm, _LEAST))
        return changed

    def _summed(self, base: Array) -> tuple[int, ...]:
        """The axes that a magnitude is the norm over: all but the rows, or all but the columns."""
        shape = self.magnitude.shape
        kept = 1 if len(shape) > 1 and shape[:2] == (1, base.shape[1]) else 0
        return tuple(axis for axis in range(base.ndim) if axis != kept)
