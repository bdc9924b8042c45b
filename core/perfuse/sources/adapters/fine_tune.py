"""A fine-tune of a whole model, taken as an adapter: how its weights differ."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from perfuse.sources.adapters.delta import Array, Delta

__all__ = ["Difference"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Difference(Delta):
    """How far a fine-tune's weight, of any number of axes, is from another.

    Counted ``w`` it makes ``(1 - w) a + w b`` of the weight ``a``, a weighted sum; with ``before`` it
    makes ``a + w (b - c)``, an added difference.
    """

    shape: tuple[int, ...]
    #: Reads ``b``.
    after: Callable[[], Array]
    #: Reads ``c``, what it was tuned from; ``None`` for the weight that it is put into.
    before: Callable[[], Array] | None = None

    @property
    def rank(self) -> int:
        return min(self.size)

    @property
    def size(self) -> tuple[int, int]:
        rows = self.shape[0] if self.shape else 1
        return rows, math.prod(self.shape) // max(rows, 1)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape == self.shape

    def product(self, factor: float) -> Array:
        before = self.before() if self.before is not None else np.float32(0)
        return np.float32(factor) * (self.after() - before)

    def applied(self, weight: Array, base: Array, strength: float) -> Array:
        before = self.before() if self.before is not None else base
        added = np.subtract(self.after(), before)
        added *= np.float32(strength * self.scale)
        return np.add(weight, added, out=added)
