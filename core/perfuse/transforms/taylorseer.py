"""TaylorSeer (Liu et al. 2025, https://arxiv.org/abs/2503.06923) on the denoiser's whole output."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import factorial

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.errors import InputError
from perfuse.tasks.forecast import Forecast, check_counts, derivatives, every
from perfuse.tasks.skipping import skipping

__all__ = ["TRANSFORMS", "TaylorSeer"]

TRANSFORMS = (
    TransformManifest(
        name="taylorseer",
        impl=f"{__name__}:TaylorSeer",
        summary="steps between computed ones by a Taylor series: taylorseer:interval=2,order=1",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Forecast):
    """How often the denoiser is asked, and how far the series goes."""

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
        terms = [d * k**i / factorial(i) for i, d in enumerate(derivatives(steps))]
        return tuple(np.sum(terms, axis=0))


class TaylorSeer(Transform):
    """Asks the denoiser seldom, and forecasts its output by a Taylor series in between."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        return plan.with_tasks(partial(skipping, rule=options))
