"""HiCache (Feng et al. 2025, https://arxiv.org/abs/2508.16984) on the denoiser's whole output."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import factorial

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.errors import InputError
from perfuse.tasks.forecast import Forecast, check_counts, derivatives, every
from perfuse.tasks.skipping import skipping

__all__ = ["TRANSFORMS", "HiCache"]

TRANSFORMS = (
    TransformManifest(
        name="hicache",
        impl=f"{__name__}:HiCache",
        summary="steps between computed ones by Hermite polynomials: hicache:interval=2,order=2",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Forecast):
    """How often the denoiser is asked, and which polynomials stand for it in between."""

    #: The denoiser is asked once in so many steps.
    interval: int = 2
    #: The highest derivative.
    order: int = 2
    #: ``σ``, above 0 and at most 1: how far the polynomials are contracted.
    sigma: float = 0.5
    #: At how many steps it is asked before any is left out.
    warmup: int = 3

    def __post_init__(self) -> None:
        check_counts(interval=self.interval, warmup=self.warmup)
        if not 1 <= self.order <= 4:
            raise InputError(f"order={self.order} was given; it must be between 1 and 4.")
        if not 0 < self.sigma <= 1:
            raise InputError(f"sigma={self.sigma} was given; it must be above 0 and at most 1.")

    def check(self, total: int) -> None:
        check_counts(total, interval=self.interval, warmup=self.warmup)

    @property
    def depth(self) -> int:
        return self.order + 1

    def computes(self, index: int, steps: tuple[int, ...]) -> bool:
        return every(self.interval, self.warmup, index, steps)

    def weights(self, steps: Sequence[int], index: int, total: int) -> Sequence[float]:
        import numpy as np

        k = index - steps[-1]
        terms = [d * self._hermite(i, k) / factorial(i) for i, d in enumerate(derivatives(steps))]
        return tuple(np.sum(terms, axis=0))

    def _hermite(self, n: int, x: float) -> float:
        """``σⁿ Hₙ(σ x)``, the dual scaling of the physicists' polynomial."""
        from numpy.polynomial.hermite import hermval

        return float(self.sigma**n * hermval(self.sigma * x, [0] * n + [1]))


class HiCache(Transform):
    """Asks the denoiser seldom, and forecasts its output by scaled Hermite polynomials."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        return plan.with_tasks(partial(skipping, rule=options))
