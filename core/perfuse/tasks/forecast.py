"""Forecasts of predictions: weighted sums of the last ones that the denoiser computed."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import TYPE_CHECKING, Any

from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.skipping import Answer, Rule, Seen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Forecast", "Series", "check_counts", "check_positive", "derivatives"]


@dataclass(frozen=True, kw_only=True)
class Computed:
    """The steps at which the denoiser was asked, and what it said at the last of them."""

    steps: tuple[int, ...]
    predictions: tuple[Array, ...]


class Forecast(Rule):
    """A rule whose guesses are weighted sums of the predictions computed last."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """How many predictions it looks back at."""

    @abstractmethod
    def computes(self, index: int, steps: tuple[int, ...]) -> bool:
        """Whether a step is computed, after those in ``steps``."""

    @abstractmethod
    def weights(self, steps: Sequence[int], index: int, total: int) -> Sequence[float]:
        """The weights of the predictions at ``steps``, at most ``depth``, for the one at ``index``."""

    def asks(self, seen: Seen, memory: Computed) -> tuple[bool, Any]:
        return self.computes(seen.index, memory.steps), memory

    def keep(self, seen: Seen, answer: Answer, memory: Computed | None) -> Computed:
        before = memory if memory is not None else Computed(steps=(), predictions=())
        predictions = (*before.predictions, answer.guided)[-self.depth :]
        return Computed(steps=(*before.steps, seen.index), predictions=predictions)

    def guess(self, seen: Seen, memory: Computed) -> Array:
        steps = memory.steps[-len(memory.predictions) :]
        weights = self.weights(steps, seen.index, seen.total)
        terms = (float(w) * p for w, p in zip(weights, memory.predictions, strict=True))
        total = next(terms)
        for term in terms:
            total = total + term
        return total


@dataclass(frozen=True, kw_only=True)
class Series(Forecast):
    """Asks once in so many steps; derivatives times polynomials stand for the others."""

    #: The denoiser is asked once in so many steps.
    interval: int = 2
    #: The highest derivative; 0 takes the last prediction again.
    order: int = 1
    #: At how many steps it is asked before any is left out.
    warmup: int = 3

    def __post_init__(self) -> None:
        check_counts(interval=self.interval, warmup=self.warmup)
        if not 0 <= self.order <= 4:
            raise InputError(f"order={self.order} was given; it must be between 0 and 4.")

    @abstractmethod
    def polynomial(self, n: int, k: int) -> float:
        """How much the ``n``-th derivative counts ``k`` steps later, times ``n!``."""

    def check(self, total: int) -> None:
        check_counts(total, interval=self.interval, warmup=self.warmup)

    @property
    def depth(self) -> int:
        return self.order + 1

    def computes(self, index: int, steps: tuple[int, ...]) -> bool:
        return index < self.warmup or index - steps[-1] >= self.interval

    def weights(self, steps: Sequence[int], index: int, total: int) -> Sequence[float]:
        import numpy as np

        k = index - steps[-1]
        found = enumerate(derivatives(steps))
        return tuple(np.sum([self.polynomial(n, k) / factorial(n) * d for n, d in found], axis=0))


def derivatives(steps: Sequence[int]) -> "list[NDArray[np.float64]]":
    """The derivatives at the last of some steps, each as weights of the predictions at them.

    Differences of differences, each over the time since the step before (Liu et al. 2025,
    arXiv:2503.06923, eq. 5, where all intervals are equal).
    """
    import numpy as np

    table, gaps = np.eye(len(steps)), np.diff(np.asarray(steps, dtype=np.float64))
    found = [table[-1]]
    for order in range(len(gaps)):
        table = np.diff(table, axis=0) / gaps[order:, None]
        found.append(table[-1])
    return found


def check_counts(total: int | None = None, **counts: float) -> None:
    """Raise ``InputError`` for numbers of steps below 1, or above the steps of a run, by name."""
    for name, value in counts.items():
        if not (math.isfinite(value) and value >= 1):
            raise InputError(f"{name}={value} was given; it must be a number of at least 1.")
        if total is not None and value > total:
            raise InputError(
                f"{name}={value} was given, and there are {total} steps. Give a smaller {name}, or "
                "more steps."
            )


def check_positive(name: str, value: float) -> None:
    """Raise ``InputError`` unless a setting is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value} was given; it must be a finite number above 0.")
