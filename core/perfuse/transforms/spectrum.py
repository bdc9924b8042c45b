"""Spectrum (Han et al. 2026, https://github.com/hanjq17/Spectrum) on the denoiser's whole output."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.errors import InputError
from perfuse.tasks.forecast import Forecast, check_counts, check_positive
from perfuse.tasks.skipping import skipping

__all__ = ["TRANSFORMS", "Spectrum"]

TRANSFORMS = (
    TransformManifest(
        name="spectrum",
        impl=f"{__name__}:Spectrum",
        summary="steps between computed ones by Chebyshev polynomials: spectrum:window=2,grow=0.75",
    ),
)

#: How many predictions a fit looks back at.
_KEPT = 10


@dataclass(frozen=True, kw_only=True)
class Options(Forecast):
    """How often the denoiser is asked, and how smooth a curve is laid through what it said."""

    #: The denoiser is asked once in so many steps, rounded down,
    window: float = 2.0
    #: and in so many more after each time.
    grow: float = 0.75
    #: The degree of the polynomials.
    degree: int = 4
    #: ``λ`` of the ridge regression that fits them.
    ridge: float = 0.1
    #: At how many steps it is asked before any is left out.
    warmup: int = 5

    def __post_init__(self) -> None:
        check_positive("ridge", self.ridge)
        if not (math.isfinite(self.grow) and self.grow >= 0):
            raise InputError(f"grow={self.grow} was given; it must be at least 0.")
        if not 0 <= self.degree < _KEPT:
            raise InputError(f"degree={self.degree} was given; it must be between 0 and 9.")
        check_counts(window=self.window, warmup=self.warmup)

    def check(self, total: int) -> None:
        check_counts(total, window=self.window, warmup=self.warmup)

    @property
    def depth(self) -> int:
        return _KEPT

    def computes(self, index: int, steps: tuple[int, ...]) -> bool:
        window = self.window + self.grow * (len(steps) - self.warmup)
        return index < self.warmup or index - steps[-1] >= math.floor(window)

    def weights(self, steps: Sequence[int], index: int, total: int) -> Sequence[float]:
        """``x (XᵀX + λI)⁻¹ Xᵀ``: the fit at ``index`` is linear in the predictions."""
        import numpy as np
        from numpy.polynomial.chebyshev import chebvander

        times = 2 * np.asarray([*steps, index], dtype=np.float64) / total - 1
        *fitted, x = chebvander(times, self.degree)
        X = np.asarray(fitted)
        ridge = self.ridge * np.eye(self.degree + 1)
        return tuple(x @ np.linalg.solve(X.T @ X + ridge, X.T))


class Spectrum(Transform):
    """Asks the denoiser ever more seldom, and lays Chebyshev polynomials through what it said."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        return plan.with_tasks(partial(skipping, rule=options))
