"""TaylorSeer (Liu et al. 2025, https://arxiv.org/abs/2503.06923) on the denoiser's whole output."""

from functools import partial

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.tasks.forecast import Series
from perfuse.tasks.skipping import skipping

__all__ = ["TRANSFORMS", "TaylorSeer"]

TRANSFORMS = (
    TransformManifest(
        name="taylorseer",
        impl=f"{__name__}:TaylorSeer",
        summary="steps between computed ones by a Taylor series: taylorseer:interval=2,order=1",
    ),
)


class Options(Series):
    """How often the denoiser is asked, and how far the series goes."""

    def polynomial(self, n: int, k: int) -> float:
        return float(k**n)


class TaylorSeer(Transform):
    """Asks the denoiser seldom, and forecasts its output by a Taylor series in between."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        return plan.with_tasks(partial(skipping, rule=options))
