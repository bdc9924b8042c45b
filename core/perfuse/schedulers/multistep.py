"""What the multistep solvers DPM-Solver and UniPC share: levels, spacing, half log-SNR."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from perfuse.errors import InputError

from .base import Grid
from .betas import Float32s
from .kinds import host
from .noise_levels import TrainedLevels
from .rounded import log32

__all__ = ["MultistepLevels"]


class MultistepLevels(TrainedLevels):
    """Steps between levels, in half log-SNR lambda = log(alpha / sigma)."""

    second = None

    def _untimed(self) -> Grid:
        timesteps = np.arange(len(self._trained), dtype=np.float32)[::-1].copy()
        return Grid(timesteps=timesteps, sigmas=self._trained, steps=None)

    def _signal(self, sigma: Float32s) -> tuple[Float32s, Float32s]:
        one = np.float32(1)
        if self.settings.use_flow_sigmas:
            return one - sigma, sigma
        alpha = one / np.sqrt(np.square(sigma) + one)
        return alpha, sigma * alpha

    def _half_log_snr(self, levels: Float32s) -> tuple[Float32s, Float32s, Float32s]:
        """alpha, sigma and lambda for each level; lambda is infinite at level zero."""
        alpha, sigma = self._signal(levels)
        return alpha, sigma, log32(alpha) - log32(sigma)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """The step of a timestep, the second where it occurs twice, the last where it does not."""
        known = self._timesteps if schedule_timesteps is None else host(schedule_timesteps)
        if not np.any(known == host(timestep)):
            return len(self._timesteps) - 1
        return super().index_for_timestep(timestep, schedule_timesteps)

    def _flow_shift(self, mu: float | None) -> float:
        """How far to move a flow's levels towards noise: by ``mu``, or as the settings say."""
        s = self.settings
        if mu is None:
            return float(s.flow_shift)
        if not s.use_dynamic_shifting or s.time_shift_type != "exponential":
            raise InputError(
                "mu= needs use_dynamic_shifting=True and time_shift_type='exponential'. Leave it "
                "out, or make the scheduler with these."
            )
        return math.exp(mu)
