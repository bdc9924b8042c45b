"""HiCache (Feng et al. 2025, https://arxiv.org/abs/2508.16984) on the denoiser's whole output."""

from dataclasses import dataclass
from functools import partial

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.errors import InputError
from perfuse.tasks.forecast import Series
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
class Options(Series):
    """How often the denoiser is asked, and which polynomials stand for it in between."""

    order: int = 2
    #: ``σ``, above 0 and at most 1: how far the polynomials are contracted.
    sigma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma <= 1:
            raise InputError(f"sigma={self.sigma} was given; it must be above 0 and at most 1.")

    def polynomial(self, n: int, k: int) -> float:
        """``σⁿ Hₙ(σ k)``, the dual scaling of the physicists' polynomial."""
        from numpy.polynomial.hermite import hermval

        return float(self.sigma**n * hermval(self.sigma * k, [0] * n + [1]))


class HiCache(Transform):
    """Asks the denoiser seldom, and forecasts its output by scaled Hermite polynomials."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        return plan.with_tasks(partial(skipping, rule=options))
