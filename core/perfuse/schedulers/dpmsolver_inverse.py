"""DPM-Solver and DPM-Solver++ backwards: from a clean sample up to its noise (Lu et al. 2022b)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .exponential import Exponential, points_of
from .linear import Linear, M, slot
from .multistep import MultistepLevels
from .noise_levels import descent, one_descent
from .prediction import epsilon_of, x0_of
from .rounded import log32
from .sigmas import Floats, flow_shift
from .table import Array, Row, Schedule, Threshold

NAMES = ("dpmsolver-multistep-inverse",)

__all__ = ["DPMSolverInverseSettings", "DPMSolverMultistepInverseScheduler"]

_ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


@dataclass(frozen=True, kw_only=True)
class DPMSolverInverseSettings(BetaSettings):
    """The settings of ``DPMSolverMultistepInverseScheduler``."""

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
    """Use lower orders at the end of fewer than fifteen steps."""
    euler_at_final: bool = False
    """Make the last step first-order however many there are."""
    use_karras_sigmas: bool = False
    """Ascend as Karras et al. 2022 descend."""
    use_exponential_sigmas: bool = False
    """Ascend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Ascend by a beta distribution; needs scipy."""
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


class DPMSolverMultistepInverseScheduler(MultistepLevels):
    """One model call a step, from the lowest level to the highest."""

    Settings = DPMSolverInverseSettings
    hands_to = KARRAS
    settings: DPMSolverInverseSettings

    def _checked(self, s: DPMSolverInverseSettings) -> DPMSolverInverseSettings:
        # The names of other classes' solvers, so that their configs can be handed over.
        if s.algorithm_type == "deis":
            s = dataclasses.replace(s, algorithm_type="dpmsolver++")
        if s.solver_type in ("logrho", "bh1", "bh2"):
            s = dataclasses.replace(s, solver_type="midpoint")
        choose("algorithm_type", s.algorithm_type, _ALGORITHMS)
        choose("solver_type", s.solver_type, ("midpoint", "heun"))
        choose("variance_type", s.variance_type, (None, "learned", "learned_range"))
        choose("solver_order", s.solver_order, (1, 2, 3))
        plus = s.algorithm_type.endswith("++")
        predictions = ("epsilon", "sample", "v_prediction")
        choose("prediction_type", s.prediction_type, (*predictions, *["flow_prediction"] * plus))
        if not plus and s.thresholding:
            raise InputError(
                "thresholding needs the clean sample, which algorithm_type 'dpmsolver' does not "
                "solve for. Use algorithm_type='dpmsolver++'."
            )
        one_descent(s)
        return s

    def _untimed(self) -> Grid:
        timesteps = np.arange(self.settings.num_train_timesteps, dtype=np.float32)
        return Grid(timesteps=timesteps, sigmas=self._trained, steps=None)

    def _grid(self, request: Request) -> Grid:
        s, total, count = self.settings, self.settings.num_train_timesteps, request.count
        levels: Floats
        timesteps: Floats
        if descent(s) is not None:
            levels = self._descend(self._trained, count)
            timesteps = self._to_t(levels)
            timesteps, last = timesteps.round() if s.use_karras_sigmas else timesteps, levels[-1]
        elif s.use_flow_sigmas:  # downwards, as in Diffusers
            rest = 1.0 - np.linspace(1, 1 / total, count + 1)
            levels = flow_shift(rest, s.flow_shift)[::-1][:-1]
            timesteps, last = levels * total, levels[-1]
        else:
            noisiest = self._noisiest()
            timesteps = self._evenly(count, noisiest)
            levels, last = self._interpolated(timesteps), self._trained[noisiest]
            timesteps = timesteps.astype(np.int64)
        # A timestep that occurs twice is called once, though each has its level: as in Diffusers.
        first = np.sort(np.unique(timesteps, return_index=True)[1])
        timesteps = timesteps[first]
        return Grid(
            timesteps=timesteps.astype(np.int64),
            sigmas=np.append(levels, last).astype(np.float32),
            steps=len(timesteps),
        )

    def _noisiest(self) -> int:
        a = self._alphas_cumprod
        rising = (log32(np.sqrt(a)) - log32(np.sqrt(np.float32(1) - a)))[::-1]
        clipped = int(np.searchsorted(rising, np.float32(self.settings.lambda_min_clipped)))
        return self.settings.num_train_timesteps - 1 - clipped

    def _evenly(self, count: int, noisiest: int) -> npt.NDArray[Any]:
        s = self.settings
        choose("timestep_spacing", s.timestep_spacing, ("linspace", "leading", "trailing"))
        if s.timestep_spacing == "linspace":
            points: Floats = np.linspace(0, noisiest, count + 1).round()[:-1]
        elif s.timestep_spacing == "leading":
            points = np.arange(count) * ((noisiest + 1) // (count + 1)) + s.steps_offset
        else:
            points = np.arange(noisiest + 1, 0, -s.num_train_timesteps / count).round()[::-1] - 1
        return points.astype(np.int64)

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s, n, levels = self.settings, len(grid.timesteps), self._levels(grid)
        points = points_of(*self._half_log_snr(levels))
        plus, sde = s.algorithm_type.endswith("++"), s.algorithm_type.startswith("sde")
        solver = Exponential(plus=plus, sde=sde)
        rows = []
        for i in range(begin, n):
            at = points[i]
            level = levels[i] if s.prediction_type == "flow_prediction" else at.sigma
            x0 = x0_of(s.prediction_type, at.alpha, level)
            outputs: list[Linear] = [M, *(slot(k) for k in range(1, s.solver_order))]
            order = self._order_at(i, i - begin, n)
            if order == 3 and sde:
                raise InputError(
                    f"algorithm_type {s.algorithm_type!r} has no third order upwards, in Diffusers "
                    "neither. Use solver_order=2."
                )
            with np.errstate(all="ignore"):  # the schedule refuses non-finite values
                update = solver.multistep(outputs, points[i - order + 1 : i + 2], s.solver_type)
            rows.append(
                Row(
                    timestep=int(grid.timesteps[i]),
                    convert=x0 if plus else epsilon_of(s.prediction_type, at.alpha, at.sigma),
                    update=(update, *outputs[:-1]),
                    denoised=M if plus else x0,
                    draws=sde,
                    noising=(float(at.alpha), float(at.sigma)),
                )
            )
        ratio, maximum = s.dynamic_thresholding_ratio, s.sample_max_value
        return Schedule(
            rows=tuple(rows),
            threshold=Threshold(ratio=ratio, maximum=maximum) if s.thresholding else None,
            drops_variance=s.variance_type is not None and s.prediction_type == "epsilon",
        )

    def _order_at(self, i: int, done: int, n: int) -> int:
        s = self.settings
        few = s.lower_order_final and n < 15
        if done < 1 or (i == n - 1 and (s.euler_at_final or few)):
            return 1
        if done < 2 or (i == n - 2 and few):
            return min(s.solver_order, 2)
        return s.solver_order

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        variance_noise: Array = None,
        return_dict: bool = True,
    ) -> Any:
        """One step up; see ``Scheduler.step``."""
        return self._step(
            model_output, timestep, sample, return_dict, generator=generator, noise=variance_noise
        )
