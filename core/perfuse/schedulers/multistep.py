"""What the multistep solvers DPM-Solver and UniPC share: levels, spacing, half log-SNR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.errors import InputError

from .base import Grid
from .betas import BetaSettings, Float32s
from .kinds import host
from .noise_levels import TrainedLevels
from .rounded import log32

__all__ = ["MultistepLevels", "MultistepSettings"]


@dataclass(frozen=True, kw_only=True)
class MultistepSettings(BetaSettings):
    """The settings that both solvers have."""

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
    lower_order_final: bool = True
    """Use lower orders at the end, where the levels fall steeply."""
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
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""
    final_sigmas_type: str = "zero"
    """Where the last step ends: zero, or sigma_min."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be almost pure noise."""
    use_dynamic_shifting: bool = False
    """Shift a flow's levels by ``mu``, from the picture's size."""
    time_shift_type: str = "exponential"
    """How mu shifts."""


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
