"""Euler's method with ancestral noise: step below the next level, then add noise up to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import spacing
from .base import KARRAS_FAMILY, Grid, Request, choose
from .betas import BetaSettings
from .euler import first_sigma, input_scales, level_x0
from .linear import NOISE, OUT, X
from .noise_levels import TrainedLevels
from .table import Row, Schedule

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


class EulerAncestralDiscreteScheduler(TrainedLevels):
    """Draws noise at every step, the last one too, where none of it is used."""

    Settings = EulerAncestralSettings
    family = KARRAS_FAMILY
    casts_to_output = True
    scales_input = True
    settings: EulerAncestralSettings

    def _checked(self, s: EulerAncestralSettings) -> EulerAncestralSettings:
        choose("prediction_type", s.prediction_type, ("epsilon", "v_prediction"))
        return s

    def _untimed(self) -> Grid:
        levels = self._trained[::-1]
        timesteps = np.arange(len(levels), dtype=np.float32)[::-1].copy()
        return Grid(timesteps=timesteps, sigmas=np.append(levels, np.float32(0)), steps=None)

    def _grid(self, request: Request) -> Grid:
        s, steps = self.settings, request.count
        timesteps = spacing.single(
            s.timestep_spacing, s.num_train_timesteps, steps, s.steps_offset
        ).astype(np.float32)
        levels = np.append(self._interpolated(timesteps), 0.0).astype(np.float32)
        return Grid(timesteps=timesteps, sigmas=levels, steps=steps)

    def _init_noise_sigma(self, grid: Grid) -> float:
        return first_sigma(self._levels(grid), self.settings.timestep_spacing)

    def _table(self, grid: Grid, start: int, eta: float) -> Schedule:
        levels = self._levels(grid)
        high, low = np.square(levels[:-1]), np.square(levels[1:])
        # Variance that can be removed from the first level and added back to reach the second.
        up = np.sqrt(low * (high - low) / high)
        down = np.sqrt(low - np.square(up))
        scales = input_scales(levels)
        rows = []
        for i in range(start, len(grid.timesteps)):
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
        return Schedule(rows=tuple(rows), init_noise_sigma=self._init_noise_sigma(grid))
