"""The steps of DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b): exponential integrators.

A step goes from one noise level to another, h = lambda_t - lambda_s further in half log-SNR. The
linear part of the equation is solved exactly; the model's part is a polynomial in lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.errors import InputError

from .linear import NOISE, Linear, X
from .rounded import exp32

__all__ = ["Exponential", "Point", "points_of"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A noise level as the formulas name it."""

    alpha: Any
    sigma: Any
    lam: Any


def points_of(alphas: Any, sigmas: Any, lams: Any) -> list[Point]:
    """A point for each level."""
    return [
        Point(alpha=alpha, sigma=sigma, lam=lam)
        for alpha, sigma, lam in zip(alphas, sigmas, lams, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Exponential:
    """The formulas of one algorithm."""

    plus: bool
    """``++``: the model's part is the clean sample, not the noise."""
    sde: bool
    """Solve the reverse SDE, not the probability-flow ODE: each step draws."""

    def multistep(
        self, outputs: Sequence[Linear], points: Sequence[Point], solver_type: str
    ) -> Linear:
        """The sample at the last of ``points``, from outputs at the ones before, newest first."""
        t, s0 = points[-1], points[-2]
        h = t.lam - s0.lam
        m0 = outputs[0]
        d1 = d2 = None
        if len(points) > 2:  # Lu et al. 2022b, Alg. 2: finite differences in lambda
            m1 = outputs[1]
            r0 = (s0.lam - points[-3].lam) / h
            d1 = (m0 - m1) / r0
            if len(points) > 3:
                m2 = outputs[2]
                r1 = (points[-3].lam - points[-4].lam) / h
                d11 = (m1 - m2) / r1
                d1, d2 = d1 + (d1 - d11) * (r0 / (r0 + r1)), (d1 - d11) / (r0 + r1)
        heun = solver_type == "heun" or d2 is not None  # order 3 has one formula
        return self.step(X, t, s0, m0, d1, d2, heun)

    def singlestep(
        self, x: Linear, outputs: Sequence[Linear], points: Sequence[Point], solver_type: str
    ) -> Linear:
        """The sample at the last of ``points``, from ``x`` at the first and all outputs between."""
        t, start = points[-1], points[0]
        h = t.lam - start.lam
        d1 = d2 = None
        heun = solver_type == "heun"
        first = outputs[len(points) - 2]
        if len(points) > 2:
            r0 = (points[-2].lam - start.lam) / h
            d1 = (outputs[0] - first) / r0
            if len(points) > 3:
                if heun:  # Lu et al. 2022a, Alg. 5
                    r1 = (points[1].lam - start.lam) / h
                    early = (outputs[1] - first) / r1
                    d1, d2 = (early * r0 - d1 * r1) / (r0 - r1), (d1 - early) * 2 / (r0 - r1)
                heun = True
        return self.step(x, t, start, first, d1, d2, heun)

    def step(
        self,
        x: Linear,
        t: Point,
        s: Point,
        m0: Linear,
        d1: Linear | None,
        d2: Linear | None,
        heun: bool,
    ) -> Linear:
        """From ``x`` at ``s`` to ``t``, with the model's part and its differences in lambda."""
        h = t.lam - s.lam
        if not self.plus:
            return self._noise(x, t, s, h, m0, d1, d2, heun)
        solve = self._sde_x0 if self.sde else self._ode_x0
        return solve(x, t, s, h, m0, d1, d2, heun)

    def _ode_x0(
        self,
        x: Linear,
        t: Point,
        s: Point,
        h: Any,
        m0: Linear,
        d1: Linear | None,
        d2: Linear | None,
        heun: bool,
    ) -> Linear:
        phi = exp32(-h) - 1
        after: Linear = (t.sigma / s.sigma) * x - (t.alpha * phi) * m0
        if d1 is not None:
            after += d1 * (t.alpha * (phi / h + 1) if heun else -0.5 * (t.alpha * phi))
        if d2 is not None:
            after -= d2 * (t.alpha * ((phi + h) / h**2 - 0.5))
        return after

    def _sde_x0(
        self,
        x: Linear,
        t: Point,
        s: Point,
        h: Any,
        m0: Linear,
        d1: Linear | None,
        d2: Linear | None,
        heun: bool,
    ) -> Linear:
        decay = 1 - exp32(-2 * h)
        after: Linear = (t.sigma / s.sigma * exp32(-h)) * x + (t.alpha * decay) * m0
        if d1 is not None:
            after += d1 * (t.alpha * (decay / (-2 * h) + 1) if heun else 0.5 * (t.alpha * decay))
        if d2 is not None:
            after += d2 * (t.alpha * ((decay - 2 * h) / (2 * h) ** 2 - 0.5))
        return after + NOISE * float(t.sigma * np.sqrt(decay))

    def _noise(
        self,
        x: Linear,
        t: Point,
        s: Point,
        h: Any,
        m0: Linear,
        d1: Linear | None,
        d2: Linear | None,
        heun: bool,
    ) -> Linear:
        if self.sde and d2 is not None:
            raise InputError(
                "algorithm_type 'sde-dpmsolver' has no third order, in Diffusers neither. Use "
                "solver_order=2, or algorithm_type='sde-dpmsolver++'."
            )
        phi = exp32(h) - 1
        twice = 2 if self.sde else 1
        after: Linear = (t.alpha / s.alpha) * x - (twice * (t.sigma * phi)) * m0
        if d1 is not None:
            slope = t.sigma * (phi / h - 1) if heun else 0.5 * (t.sigma * phi)
            after -= d1 * (twice * slope)
        if d2 is not None:
            after -= d2 * (t.sigma * ((phi - h) / h**2 - 0.5))
        if self.sde:
            after += NOISE * float(t.sigma * np.sqrt(exp32(2 * h) - 1))
        return after
