"""DPM-Solver and DPM-Solver++, multistep, orders 1 to 3 (Lu et al. 2022a, 2022b).

The ``sde-`` algorithms solve the reverse SDE instead of the probability-flow ODE.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from . import spacing
from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .exponential import Exponential, Point, points_of
from .linear import Linear, M, X, slot
from .multistep import MultistepLevels
from .noise_levels import descent, one_descent
from .prediction import epsilon_of, x0_of
from .rounded import log32
from .sigmas import Floats, flow_shift
from .table import Array, Row, Schedule, Threshold

NAMES = ("dpm++", "dpmsolver-multistep")

__all__ = ["DPMSolverMultistepScheduler", "DPMSolverSettings"]

_ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


@dataclass(frozen=True, kw_only=True)
class DPMSolverSettings(BetaSettings):
    """The settings of ``DPMSolverMultistepScheduler``."""

    solver_order: int = 2
    """How many model outputs a step combines: 1, 2 or 3."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample, v_prediction or flow_prediction."""
    thresholding: bool = False
    """Clamp the predicted clean sample to a quantile of itself."""
    dynamic_thresholding_ratio: float = 0.995
    """Which quantile."""
    sample_max_value: float = 1.0
    """The largest range of ``thresholding``."""
    algorithm_type: str = "dpmsolver++"
    """Solve for the noise (dpmsolver) or for the clean sample (++), as an ODE or an SDE (sde-)."""
    solver_type: str = "midpoint"
    """The second-order formula: midpoint or heun."""
    lower_order_final: bool = True
    """Use lower orders at the end, where the levels fall steeply."""
    euler_at_final: bool = False
    """Make the last step first-order however many there are."""
    use_karras_sigmas: bool = False
    """Descend as Karras et al. 2022 do."""
    use_exponential_sigmas: bool = False
    """Descend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Descend by a beta distribution; needs scipy."""
    use_lu_lambdas: bool = False
    """Descend evenly in log-SNR."""
    use_flow_sigmas: bool = False
    """The levels are those of a flow: x = (1 - sigma) x0 + sigma n."""
    flow_shift: float = 1.0
    """Moves a flow's levels towards noise."""
    final_sigmas_type: str = "zero"
    """Where the last step ends: zero, or sigma_min."""
    lambda_min_clipped: float = -math.inf
    """Leave out the training timesteps whose half log-SNR is below this."""
    variance_type: str | None = None
    """learned or learned_range: the output's second half of channels is not used."""
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be almost pure noise."""
    use_dynamic_shifting: bool = False
    """Shift a flow's levels by ``mu``, from the picture's size."""
    time_shift_type: str = "exponential"
    """How mu shifts."""


class DPMSolverMultistepScheduler(MultistepLevels):
    """One model call a step; up to two earlier outputs are kept."""

    Settings = DPMSolverSettings
    casts_to_output = True
    draws_float32 = True
    family = KARRAS
    settings: DPMSolverSettings

    def _checked(self, s: DPMSolverSettings) -> DPMSolverSettings:
        # The names of other classes' solvers, so that their configs can be handed over.
        if s.algorithm_type == "deis":
            s = dataclasses.replace(s, algorithm_type="dpmsolver++")
        if s.solver_type in ("logrho", "bh1", "bh2"):
            s = dataclasses.replace(s, solver_type="midpoint")
        choose("algorithm_type", s.algorithm_type, _ALGORITHMS)
        choose("solver_type", s.solver_type, ("midpoint", "heun"))
        choose("final_sigmas_type", s.final_sigmas_type, ("zero", "sigma_min"))
        choose("variance_type", s.variance_type, (None, "learned", "learned_range"))
        choose("solver_order", s.solver_order, (1, 2, 3))
        plus = s.algorithm_type.endswith("++")
        predictions = ("epsilon", "sample", "v_prediction")
        choose("prediction_type", s.prediction_type, (*predictions, *["flow_prediction"] * plus))
        if not plus and s.final_sigmas_type == "zero":
            raise InputError(
                f"algorithm_type {s.algorithm_type!r} cannot step to level zero. Use "
                "final_sigmas_type='sigma_min', or algorithm_type='dpmsolver++'."
            )
        one_descent(s)
        return s

    def _grid(self, request: Request) -> Grid:
        s = self.settings
        shaped = "use_lu_lambdas" if s.use_lu_lambdas else descent(s)
        if request.timesteps is not None:
            if request.num_inference_steps is not None:
                raise InputError("Pass num_inference_steps or timesteps=, not both.")
            if shaped is not None or s.use_flow_sigmas:
                raise InputError(
                    f"timesteps= cannot be used with {shaped or 'use_flow_sigmas'}: the levels "
                    "decide the timesteps there. Pass num_inference_steps."
                )
            timesteps: npt.NDArray[Any] = np.asarray(request.timesteps, dtype=np.int64)
            levels = self._interpolated(timesteps)
        elif shaped is None and not s.use_flow_sigmas:
            timesteps = self._evenly(request.count)
            levels = self._interpolated(timesteps)
        else:
            levels, timesteps = self._shaped(shaped, request)
        last = self._trained[0] if s.final_sigmas_type == "sigma_min" else 0.0
        return Grid(
            timesteps=timesteps.astype(np.int64),
            sigmas=np.append(levels, last).astype(np.float32),
            steps=len(timesteps),
        )

    def _evenly(self, count: int) -> npt.NDArray[Any]:
        s, total = self.settings, self.settings.num_train_timesteps
        alpha, sigma = np.sqrt(self._alphas_cumprod), np.sqrt(np.float32(1) - self._alphas_cumprod)
        rising = (log32(alpha) - log32(sigma))[::-1]
        last = total - int(np.searchsorted(rising, np.float32(s.lambda_min_clipped)))
        return spacing.multistep(s.timestep_spacing, total, last, count, s.steps_offset)

    def _shaped(self, shaped: str | None, request: Request) -> tuple[Floats, Floats]:
        """Levels of a chosen descent, and the timesteps that they stand for."""
        s, total, count = self.settings, self.settings.num_train_timesteps, request.count
        if shaped is None:
            shift = self._flow_shift(request.mu)
            rest = 1.0 - np.linspace(1, 1 / total, count + 1)
            levels = flow_shift(rest, shift)[::-1][:-1]
            return levels, levels * total
        if shaped == "use_lu_lambdas":
            high, low = float(self._log_trained[-1]), float(self._log_trained[0])
            levels = np.exp(high + np.linspace(0, 1, count) * (low - high))
        else:
            levels = self._descend(self._trained[::-1], count)
        timesteps = self._to_t(levels)
        whole = shaped in ("use_karras_sigmas", "use_lu_lambdas")
        if whole and s.beta_schedule != "squaredcos_cap_v2":
            timesteps = timesteps.round()
        return levels, timesteps

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s = self.settings
        levels = self._levels(grid)
        points = points_of(*self._half_log_snr(levels))
        solver = Exponential(
            plus=s.algorithm_type.endswith("++"), sde=s.algorithm_type.startswith("sde")
        )
        n = len(grid.timesteps)
        rows = []
        for i in range(begin, n):
            convert, m0, x0 = self._conversion(points[i], levels[i])
            outputs = [m0, *(slot(k) for k in range(1, s.solver_order))]
            order = self._order_at(i, i - begin, n)
            with np.errstate(all="ignore"):  # the schedule refuses non-finite values
                update = solver.multistep(outputs, points[i - order + 1 : i + 2], s.solver_type)
            rows.append(
                Row(
                    timestep=int(grid.timesteps[i]),
                    convert=convert,
                    update=(update, *outputs[:-1]),
                    denoised=x0,
                    draws=s.algorithm_type.startswith("sde"),
                    noising=(float(points[i].alpha), float(points[i].sigma)),
                )
            )
        ratio, maximum = s.dynamic_thresholding_ratio, s.sample_max_value
        return Schedule(
            rows=tuple(rows),
            threshold=Threshold(ratio=ratio, maximum=maximum) if s.thresholding else None,
            drops_variance=s.variance_type is not None and s.prediction_type == "epsilon",
        )

    def _conversion(self, at: Point, level: Any) -> tuple[Linear, Linear, Linear]:
        """What to compute before the clamp, what the solver works on, and the clean sample."""
        s = self.settings
        sigma = level if s.prediction_type == "flow_prediction" else at.sigma
        x0 = x0_of(s.prediction_type, at.alpha, sigma)
        if s.algorithm_type.endswith("++"):
            return x0, M, M
        if s.thresholding:
            return x0, (X - at.alpha * M) / at.sigma, M
        return epsilon_of(s.prediction_type, at.alpha, at.sigma), M, x0

    def _order_at(self, i: int, done: int, n: int) -> int:
        s = self.settings
        few = s.lower_order_final and n < 15
        final = s.euler_at_final or few or s.final_sigmas_type == "zero"
        if done < 1 or (i == n - 1 and final):
            return 1
        if done < 2 or (i == n - 2 and few):
            return min(s.solver_order, 2)
        return s.solver_order

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the steps for ``step``, as many or exactly these; ``mu`` shifts a flow's."""
        self._set(num_inference_steps, device, mu=mu, timesteps=timesteps)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        variance_noise: Array = None,
        return_dict: bool = True,
    ) -> Any:
        """One step down; see ``Scheduler.step``."""
        return self._step(
            model_output, timestep, sample, return_dict, generator=generator, noise=variance_noise
        )
