"""DPM-Solver++ with the preconditioning of Karras et al. 2022."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.errors import InputError

from .base import Grid, Options, Request, choose
from .betas import Float32s, linspace32
from .edm import EDMLevels
from .exponential import Exponential, points_of
from .kinds import host
from .linear import Linear, M, slot
from .rounded import log32
from .table import Array, Row, Schedule, Threshold

NAMES = ("edm-dpmsolver-multistep",)

__all__ = ["EDMDPMSolverMultistepScheduler", "EDMDPMSolverSettings"]


@dataclass(frozen=True, kw_only=True)
class EDMDPMSolverSettings:
    """The settings of ``EDMDPMSolverMultistepScheduler``."""

    sigma_min: float = 0.002
    """The lowest level."""
    sigma_max: float = 80.0
    """The highest."""
    sigma_data: float = 0.5
    """The deviation of the data that the model was trained with."""
    sigma_schedule: str = "karras"
    """How the levels descend: karras or exponential."""
    num_train_timesteps: int = 1000
    """Steps of the schedule before any number was asked for."""
    prediction_type: str = "epsilon"
    """The sign of c_out: epsilon or v_prediction."""
    rho: float = 7.0
    """The exponent of the karras descent."""
    solver_order: int = 2
    """How many model outputs a step combines: 1, 2 or 3."""
    thresholding: bool = False
    """Clamp the predicted clean sample to a quantile of itself."""
    dynamic_thresholding_ratio: float = 0.995
    """Which quantile."""
    sample_max_value: float = 1.0
    """The largest range of ``thresholding``."""
    algorithm_type: str = "dpmsolver++"
    """Solve the ODE, or the SDE (sde-dpmsolver++)."""
    solver_type: str = "midpoint"
    """The second-order formula: midpoint or heun."""
    lower_order_final: bool = True
    """Use lower orders at the end of fewer than fifteen steps."""
    euler_at_final: bool = False
    """Make the last step first-order however many there are."""
    final_sigmas_type: str = "zero"
    """Where the last step ends: zero, or sigma_min."""


class EDMDPMSolverMultistepScheduler(EDMLevels):
    """One model call a step; up to two earlier outputs are kept."""

    Settings = EDMDPMSolverSettings
    second = None
    settings: EDMDPMSolverSettings

    def _checked(self, s: EDMDPMSolverSettings) -> EDMDPMSolverSettings:
        # The names of other classes' solvers, so that their configs can be handed over.
        if s.algorithm_type == "deis":
            s = dataclasses.replace(s, algorithm_type="dpmsolver++")
        if s.solver_type in ("logrho", "bh1", "bh2"):
            s = dataclasses.replace(s, solver_type="midpoint")
        choose("algorithm_type", s.algorithm_type, ("dpmsolver++", "sde-dpmsolver++"))
        choose("solver_type", s.solver_type, ("midpoint", "heun"))
        choose("solver_order", s.solver_order, (1, 2, 3))
        checked: EDMDPMSolverSettings = super()._checked(s)
        return checked

    def _untimed(self) -> Grid:
        levels = self._falling(self.settings.num_train_timesteps)
        sigmas = np.append(levels, np.float32(0))
        return Grid(timesteps=self._model_timesteps(levels), sigmas=sigmas, steps=None)

    def _grid(self, request: Request) -> Grid:
        s = self.settings
        levels = self._falling(request.count)
        last = np.float32(s.sigma_min if s.final_sigmas_type == "sigma_min" else 0)
        sigmas = np.append(levels, last)
        return Grid(timesteps=self._model_timesteps(levels), sigmas=sigmas, steps=len(levels))

    def _falling(self, count: int) -> Float32s:
        return self._descent(linspace32(0, 1, count))

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s, n, levels = self.settings, len(grid.timesteps), self._levels(grid)
        points = points_of(np.ones_like(levels), levels, -log32(levels))
        sde = s.algorithm_type.startswith("sde")
        solver = Exponential(plus=True, sde=sde)
        rows = []
        for i in range(begin, n):
            outputs: list[Linear] = [M, *(slot(k) for k in range(1, s.solver_order))]
            order = self._order_at(i, i - begin, n)
            if order == 3 and sde:
                raise InputError(
                    "algorithm_type 'sde-dpmsolver++' has no third order here, in Diffusers "
                    "neither. Use solver_order=2."
                )
            with np.errstate(all="ignore"):  # the schedule refuses non-finite values
                update = solver.multistep(outputs, points[i - order + 1 : i + 2], s.solver_type)
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    convert=self._denoised(levels[i], s.prediction_type),
                    update=(update, *outputs[:-1]),
                    denoised=M,
                    draws=sde,
                    input_scale=self._input_scale(levels[i]),
                    noising=(1.0, float(levels[i])),
                )
            )
        ratio, maximum = s.dynamic_thresholding_ratio, s.sample_max_value
        return Schedule(
            rows=tuple(rows),
            init_noise_sigma=self._init_noise_sigma(grid),
            threshold=Threshold(ratio=ratio, maximum=maximum) if s.thresholding else None,
        )

    def _order_at(self, i: int, done: int, n: int) -> int:
        s = self.settings
        few = s.lower_order_final and n < 15
        if done < 1 or (i == n - 1 and (s.euler_at_final or few or s.final_sigmas_type == "zero")):
            return 1
        if done < 2 or (i == n - 2 and few):
            return min(s.solver_order, 2)
        return s.solver_order

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """The step of a timestep, the second where it occurs twice, the last where it does not."""
        known = self._timesteps if schedule_timesteps is None else host(schedule_timesteps)
        if not np.any(known == host(timestep)):
            return len(self._timesteps) - 1
        return super().index_for_timestep(timestep, schedule_timesteps)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
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
