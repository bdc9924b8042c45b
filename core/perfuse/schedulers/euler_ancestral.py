"""Euler's method with ancestral noise: step below the next level, then add noise up to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import spacing
from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .euler import input_scales, level_x0, refuse_index
from .linear import NOISE, OUT, X
from .noise_levels import ScaledLevels
from .table import Array, Row, Schedule

__all__ = ["EulerAncestralDiscreteScheduler", "EulerAncestralSettings"]


@dataclass(frozen=True, kw_only=True)
class EulerAncestralSettings(BetaSettings):
    """The settings of ``EulerAncestralDiscreteScheduler``."""

    prediction_type: str = "epsilon"
    """What the model predicts: epsilon or v_prediction."""
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be almost pure noise."""


class EulerAncestralDiscreteScheduler(ScaledLevels):
    """Draws noise at every step, the last one too, where none of it is used."""

    Settings = EulerAncestralSettings
    family = KARRAS
    casts_to_output = True
    settings: EulerAncestralSettings

    def _checked(self, s: EulerAncestralSettings) -> EulerAncestralSettings:
        choose("prediction_type", s.prediction_type, ("epsilon", "v_prediction"))
        return s

    def _untimed(self) -> Grid:
        levels = self._trained[::-1]
        timesteps = np.arange(len(levels), dtype=np.float64)[::-1].copy()
        return Grid(timesteps=timesteps, sigmas=np.append(levels, np.float32(0)), steps=None)

    def _grid(self, request: Request) -> Grid:
        s, steps = self.settings, request.count
        timesteps = spacing.single(
            s.timestep_spacing, s.num_train_timesteps, steps, s.steps_offset
        ).astype(np.float32)
        levels = np.append(self._interpolated(timesteps), 0.0).astype(np.float32)
        return Grid(timesteps=timesteps, sigmas=levels, steps=steps)

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        levels = self._levels(grid)
        high, low = np.square(levels[:-1]), np.square(levels[1:])
        # Variance that can be removed from the first level and added back to reach the second.
        up = np.sqrt(low * (high - low) / high)
        down = np.sqrt(low - np.square(up))
        scales = input_scales(levels)
        rows = []
        for i in range(begin, len(grid.timesteps)):
            sigma = levels[i]
            x0 = level_x0(self.settings.prediction_type, sigma)
            derivative = OUT if self.settings.prediction_type == "epsilon" else (X - x0) / sigma
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(X + (down[i] - sigma) * derivative + up[i] * NOISE,),
                    denoised=x0,
                    draws=True,
                    input_scale=float(scales[i]),
                    noising=(1.0, float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows), init_noise_sigma=self._first_sigma(grid))

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
        refuse_index(timestep)
        return self._step(
            model_output, timestep, sample, return_dict, generator=generator, noise=noise
        )
