"""SA-Solver: stochastic Adams methods, a predictor and a corrector (Xue et al. 2023).

The corrector goes over the last step again, with the noise that the step was made with: that noise
is part of the state. One draw a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from . import spacing
from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .linear import NOISE, Linear, M, X, slot
from .multistep import MultistepLevels
from .noise_levels import descent, one_descent
from .prediction import epsilon_of, x0_of
from .rounded import log32
from .sigmas import Floats, flow_shift
from .table import Array, Row, Schedule, Threshold

NAMES = ("sa-solver",)

__all__ = ["SASolverScheduler", "SASolverSettings"]

_LAST, _LAST_NOISE = slot(1), slot(2)  # the corrected sample of the step before, and its noise


@dataclass(frozen=True, kw_only=True)
class SASolverSettings(BetaSettings):
    """The settings of ``SASolverScheduler``."""

    predictor_order: int = 2
    """How many model outputs the predictor combines: 1 to 4."""
    corrector_order: int = 2
    """How many the corrector does, the newest among them: 1 to 4."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample, v_prediction or flow_prediction."""
    tau_func: Callable[[Any], float] | None = None
    """How stochastic a timestep is; None: one from 200 to 800, zero elsewhere."""
    thresholding: bool = False
    """Clamp the predicted clean sample to a quantile of itself."""
    dynamic_thresholding_ratio: float = 0.995
    """Which quantile."""
    sample_max_value: float = 1.0
    """The largest range of ``thresholding``."""
    algorithm_type: str = "data_prediction"
    """Solve for the clean sample (data_prediction) or for the noise (noise_prediction)."""
    lower_order_final: bool = True
    """Use lower orders at the end."""
    use_karras_sigmas: bool = False
    """Descend as Karras et al. 2022 do."""
    use_exponential_sigmas: bool = False
    """Descend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Descend by a beta distribution; needs scipy."""
    use_flow_sigmas: bool = False
    """The levels are those of a flow: x = (1 - sigma) x0 + sigma n."""
    flow_shift: float = 1.0
    """Moves a flow's levels towards noise."""
    lambda_min_clipped: float = -math.inf
    """Leave out the training timesteps whose half log-SNR is below this."""
    variance_type: str | None = None
    """learned or learned_range: the output's second half of channels is not used."""
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""


class SASolverScheduler(MultistepLevels):
    """One model call and one draw a step."""

    Settings = SASolverSettings
    hands_to = KARRAS
    settings: SASolverSettings

    def _checked(self, s: SASolverSettings) -> SASolverSettings:
        choose("algorithm_type", s.algorithm_type, ("data_prediction", "noise_prediction"))
        choose("variance_type", s.variance_type, (None, "learned", "learned_range"))
        choose("predictor_order", s.predictor_order, (1, 2, 3, 4))
        choose("corrector_order", s.corrector_order, (1, 2, 3, 4))
        data = s.algorithm_type == "data_prediction"
        predictions = ("epsilon", "sample", "v_prediction")
        choose("prediction_type", s.prediction_type, (*predictions, *["flow_prediction"] * data))
        if s.thresholding and not data:
            raise InputError(
                "thresholding needs the clean sample, which algorithm_type 'noise_prediction' does "
                "not solve for. Use algorithm_type='data_prediction'."
            )
        one_descent(s)
        return s

    @property
    def tau_func(self) -> Callable[[Any], float]:
        """How stochastic a timestep is."""
        given = self.settings.tau_func
        return _tau if given is None else given

    def _grid(self, request: Request) -> Grid:
        s, total, count = self.settings, self.settings.num_train_timesteps, request.count
        levels: Floats
        timesteps: Floats
        if descent(s) is not None:
            levels = self._descend(self._trained[::-1], count)
            timesteps = self._to_t(levels)
            timesteps, last = timesteps.round() if s.use_karras_sigmas else timesteps, levels[-1]
        elif s.use_flow_sigmas:
            rest = 1.0 - np.linspace(1, 1 / total, count + 1)
            levels = flow_shift(rest, s.flow_shift)[::-1][:-1]
            timesteps, last = levels * total, levels[-1]
        else:
            a = self._alphas_cumprod
            rising = (log32(np.sqrt(a)) - log32(np.sqrt(np.float32(1) - a)))[::-1]
            end = total - int(np.searchsorted(rising, np.float32(s.lambda_min_clipped)))
            timesteps = spacing.multistep(s.timestep_spacing, total, end, count, s.steps_offset)
            levels, last = self._interpolated(timesteps), self._trained[0]
        return Grid(
            timesteps=timesteps.astype(np.int64),
            sigmas=np.append(levels, last).astype(np.float32),
            steps=len(timesteps),
        )

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s, n, levels = self.settings, len(grid.timesteps), self._levels(grid)
        data = s.algorithm_type == "data_prediction"
        solver = _Adams(points=self._half_log_snr(levels), data=data)
        kept = max(s.predictor_order, s.corrector_order - 1)
        past = [slot(k) for k in range(3, 3 + kept)]  # earlier outputs, newest first
        rows, corrector_order = [], 0
        for i in range(begin, n):
            t, sample = int(grid.timesteps[i]), X
            with np.errstate(all="ignore"):  # the schedule refuses non-finite values
                if i > begin:
                    tau = self.tau_func(int(grid.timesteps[i - 1]))
                    sample = solver.correct(i, corrector_order, tau, [M, *past])
                left = n - i if s.lower_order_final else n
                order = min(s.predictor_order, left, i - begin + 1)
                corrector_order = min(s.corrector_order, left + 1, i - begin + 2)
                update = solver.predict(i, order, self.tau_func(t), sample, [M, *past])
            alpha, sigma = (float(v[i]) for v in solver.points[:2])
            flow = s.prediction_type == "flow_prediction"
            x0 = x0_of(s.prediction_type, alpha, float(levels[i]) if flow else sigma)
            rows.append(
                Row(
                    timestep=t,
                    convert=x0 if data else epsilon_of(s.prediction_type, alpha, sigma),
                    update=(update, sample, NOISE, M, *past[:-1]),
                    denoised=M if data else x0,
                    draws=True,
                    noising=(alpha, sigma),
                )
            )
        ratio, maximum = s.dynamic_thresholding_ratio, s.sample_max_value
        return Schedule(
            rows=tuple(rows),
            threshold=Threshold(ratio=ratio, maximum=maximum) if s.thresholding else None,
            drops_variance=s.variance_type is not None and s.prediction_type == "epsilon",
        )

    def _noise_scales(self, timesteps: npt.NDArray[Any]) -> tuple[Any, Any]:
        # By the timestep, not by the step's level: as in Diffusers.
        a = self._alphas_cumprod[timesteps.astype(np.int64)]
        return np.sqrt(a), np.sqrt(np.float32(1) - a)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One step down; see ``Scheduler.step``."""
        return self._step(
            model_output, timestep, sample, return_dict, generator=generator, noise=noise
        )


def _tau(timestep: Any) -> float:
    return 1.0 if 200 <= timestep <= 800 else 0.0


@dataclass(frozen=True, kw_only=True)
class _Adams:
    """The steps of the paper's section 4, over one list of levels; in float64."""

    points: tuple[Floats, Floats, Floats]
    """alpha, sigma and lambda of each level."""
    data: bool
    """Whether the outputs are clean samples rather than noise."""

    def predict(
        self, i: int, order: int, tau: float, sample: Linear, outputs: Sequence[Linear]
    ) -> Linear:
        """The sample at level i + 1, from outputs at level i and before."""
        return self._step(i, i + 1, i, order, tau, sample, outputs, NOISE)

    def correct(self, i: int, order: int, tau: float, outputs: Sequence[Linear]) -> Linear:
        """The sample at level i once more, now that the output there is known."""
        return self._step(i - 1, i, i, order, tau, _LAST, outputs, _LAST_NOISE)

    def _step(
        self,
        start: int,
        end: int,
        newest: int,
        order: int,
        tau: float,
        x: Linear,
        outputs: Sequence[Linear],
        noise: Linear,
    ) -> Linear:
        alpha, sigma, lam = (v.astype(np.float64) for v in self.points)
        h, square = lam[end] - lam[start], tau**2
        nodes = lam[newest - np.arange(order)]
        if self.data:
            # integral of (1 + tau^2) exp((1 + tau^2) (l - l_end)) times the Lagrange polynomials
            weights = alpha[end] * _integrals(nodes, lam[start], lam[end], 1 + square)
            if order == 2:
                # The first-order term of the difference is taken exactly (appendix B.5 of the
                # paper's code, which Diffusers follows).
                weights = weights + self._correction(nodes, h, square, newest == end, alpha[end])
            after = math.exp(-square * h) * (sigma[end] / sigma[start]) * x
            spread = sigma[end] * math.sqrt(max(-math.expm1(-2 * square * h), 0.0))
        else:
            scale = (1 + square) * alpha[end]
            weights = scale * math.exp(-lam[end]) * _integrals(nodes, lam[start], lam[end], -1.0)
            after = (alpha[end] / alpha[start]) * x
            spread = tau * sigma[end] * math.sqrt(max(math.expm1(2 * h), 0.0))
        for weight, output in zip(weights, outputs, strict=False):
            after = after + float(weight) * output
        moved: Linear = after + float(spread) * noise
        return moved

    def _correction(
        self, nodes: Floats, h: float, square: float, corrects: bool, alpha: float
    ) -> Floats:
        rate = 1 + square
        rest = (h * rate - 1 + math.exp(-rate * h)) / rate**2
        between = h if corrects else nodes[0] - nodes[1]
        shift = (h**2 / 2 - rest) / between
        signed: Floats = rate * alpha * shift * np.array([1.0, -1.0])
        return signed


def _integrals(nodes: Floats, start: float, end: float, rate: float) -> Floats:
    """The integrals from ``start`` to ``end`` of rate exp(rate (l - end)) times each Lagrange
    polynomial at ``nodes``.
    """
    h = start - end
    moments = [-math.expm1(rate * h)]  # of the powers of l - end, by parts
    for k in range(1, len(nodes)):
        moments.append(-(h**k) * math.exp(rate * h) - k * moments[-1] / rate)
    weights = []
    for j, node in enumerate(nodes):
        basis = np.polynomial.Polynomial([1.0])
        for other in np.delete(nodes, j):
            basis *= np.polynomial.Polynomial([end - other, 1.0]) / (node - other)
        weights.append(float(np.dot(basis.coef, moments[: len(basis.coef)])))
    return np.array(weights)
