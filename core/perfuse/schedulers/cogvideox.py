"""What the schedulers of CogVideoX share: a signal-to-noise ratio that is moved for video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import KARRAS, Grid, Request, choose
from .betas import BetaSettings, betas_of
from .prediction import PREDICTIONS
from .variance_preserving import WithVelocity

__all__ = ["CogVideoXAlphas", "CogVideoXSettings"]


@dataclass(frozen=True, kw_only=True)
class CogVideoXSettings(BetaSettings):
    """The settings that both have."""

    beta_start: float = 0.00085
    """Variance added by the first training timestep."""
    beta_end: float = 0.012
    """Variance added by the last."""
    beta_schedule: str = "scaled_linear"
    """How the variance grows in between."""
    clip_sample: bool = True
    """Kept for other classes: nothing is clamped here."""
    set_alpha_to_one: bool = True
    """Let the last step end at no noise rather than at the first training timestep's."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample or v_prediction."""
    clip_sample_range: float = 1.0
    """Kept for other classes."""
    sample_max_value: float = 1.0
    """Kept for other classes."""
    timestep_spacing: str = "leading"
    """linspace, leading or trailing."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be pure noise."""
    snr_shift_scale: float = 3.0
    """Divides the signal-to-noise ratio: more noise, as video has more redundancy."""


class CogVideoXAlphas(WithVelocity):
    """The alphas are float64 where the betas are ``scaled_linear``, as in Diffusers."""

    hands_to = KARRAS
    settings: CogVideoXSettings

    def _checked(self, s: CogVideoXSettings) -> CogVideoXSettings:
        choose("prediction_type", s.prediction_type, PREDICTIONS)
        return s

    def _prepare(self) -> None:
        s = self.settings
        self._betas = betas_of(s)
        if s.trained_betas is None and s.beta_schedule == "scaled_linear":
            roots = np.linspace(s.beta_start**0.5, s.beta_end**0.5, s.num_train_timesteps)
            self._betas = np.square(roots)
        self._alphas = 1 - self._betas
        bar = np.cumprod(self._alphas, dtype=np.float64).astype(self._betas.dtype)
        shift = s.snr_shift_scale
        bar = (bar / (shift + (1 - shift) * bar)).astype(self._betas.dtype)
        if s.rescale_betas_zero_snr:
            root = np.sqrt(bar)
            bar = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
        self._alphas_cumprod = bar
        self._final_alpha = bar.dtype.type(1.0 if s.set_alpha_to_one else bar[0])

    def _grid(self, request: Request) -> Grid:
        return self._spaced(request)
