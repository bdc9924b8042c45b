"""DPM-Solver++ on the SDE with the cosine schedule of Stable Audio Open (Evans et al. 2024).

Diffusers draws the noise from a Brownian path of torchsde; its steps' intervals do not overlap, so
here each step draws for itself. Given the same path both give the same trajectory; the same seed
does not give the same path.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Grid, Options, Request, choose
from .betas import Float32s, linspace32
from .edm import EDMLevels
from .exponential import Exponential, points_of
from .kinds import host
from .linear import Linear, M, slot
from .rounded import log32
from .table import Array, Row, Schedule

NAMES = ("cosine-dpmsolver-multistep",)

__all__ = ["CosineDPMSolverMultistepScheduler", "CosineDPMSolverSettings"]


@dataclass(frozen=True, kw_only=True)
class CosineDPMSolverSettings:
    """The settings of ``CosineDPMSolverMultistepScheduler``."""

    sigma_min: float = 0.3
    """The lowest level."""
    sigma_max: float = 500
    """The highest."""
    sigma_data: float = 1.0
    """The deviation of the data that the model was trained with."""
    sigma_schedule: str = "exponential"
    """How the levels descend: karras or exponential."""
    num_train_timesteps: int = 1000
    """Steps of the schedule before any number was asked for."""
    solver_order: int = 2
    """How many model outputs a step combines: 1 or 2."""
    prediction_type: str = "v_prediction"
    """The sign of c_out: epsilon or v_prediction."""
    rho: float = 7.0
    """The exponent of the karras descent."""
    solver_type: str = "midpoint"
    """The second-order formula: midpoint or heun."""
    lower_order_final: bool = True
    """Use lower orders at the end of fewer than fifteen steps."""
    euler_at_final: bool = False
    """Make the last step first-order however many there are."""
    final_sigmas_type: str = "zero"
    """Where the last step ends: zero, or sigma_min."""


class CosineDPMSolverMultistepScheduler(EDMLevels):
    """One model call a step; the timestep is the angle of the noise level, 1 for a right angle."""

    Settings = CosineDPMSolverSettings
    second = None
    settings: CosineDPMSolverSettings

    def _checked(self, s: CosineDPMSolverSettings) -> CosineDPMSolverSettings:
        # The names of other classes' solvers, so that their configs can be handed over.
        if s.solver_type in ("logrho", "bh1", "bh2"):
            s = dataclasses.replace(s, solver_type="midpoint")
        choose("solver_type", s.solver_type, ("midpoint", "heun"))
        choose("solver_order", s.solver_order, (1, 2))
        checked: CosineDPMSolverSettings = super()._checked(s)
        return checked

    def _untimed(self) -> Grid:
        levels = self._descent(linspace32(0, 1, self.settings.num_train_timesteps))
        sigmas = np.append(levels, np.float32(0))
        return Grid(timesteps=self._model_timesteps(levels), sigmas=sigmas, steps=None)

    def _grid(self, request: Request) -> Grid:
        s = self.settings
        levels = self._descent(linspace32(0, 1, request.count))
        last = np.float32(s.sigma_min if s.final_sigmas_type == "sigma_min" else 0)
        return Grid(
            timesteps=self._model_timesteps(levels),
            sigmas=np.append(levels, last),
            steps=len(levels),
        )

    def _model_timesteps(self, levels: Float32s) -> Float32s:
        angles = np.arctan(levels, dtype=np.float64).astype(np.float32)
        shares: Float32s = angles / np.float32(np.pi) * np.float32(2)
        return shares

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s, n, levels = self.settings, len(grid.timesteps), self._levels(grid)
        points = points_of(np.ones_like(levels), levels, -log32(levels))
        solver = Exponential(plus=True, sde=True)
        few = s.lower_order_final and n < 15
        final = s.euler_at_final or few or s.final_sigmas_type == "zero"
        rows = []
        for i in range(begin, n):
            outputs: list[Linear] = [M, *(slot(k) for k in range(1, s.solver_order))]
            order = 1 if i == begin or (i == n - 1 and final) else s.solver_order
            with np.errstate(all="ignore"):  # the schedule refuses non-finite values
                update = solver.multistep(outputs, points[i - order + 1 : i + 2], s.solver_type)
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    convert=self._denoised(levels[i], s.prediction_type),
                    update=(update, *outputs[:-1]),
                    denoised=M,
                    draws=True,
                    input_scale=self._input_scale(levels[i]),
                    noising=(1.0, float(levels[i])),
                )
            )
        return Schedule(rows=tuple(rows), init_noise_sigma=self._init_noise_sigma(grid))

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
