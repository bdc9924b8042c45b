"""The preconditioning of Karras et al. 2022 (table 1, last column), and its noise levels.

x = x0 + sigma n; the model sees c_in x and answers with a part of x0: x0 = c_skip x + c_out model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Grid, choose
from .betas import Float32s, linspace32
from .kinds import host
from .linear import OUT, Linear, X
from .noise_levels import NoiseLevels
from .rounded import exp32, log32
from .sigmas import Floats
from .table import Array

__all__ = ["EDMLevels", "EDMSettings"]


@dataclass(frozen=True, kw_only=True)
class EDMSettings:
    """The settings that all of them have."""

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
    final_sigmas_type: str = "zero"
    """Where the last step ends: zero, or sigma_min."""


class EDMLevels(NoiseLevels):
    """Levels from ``sigma_max`` to ``sigma_min``."""

    scales_input = True

    def _checked(self, s: Any) -> Any:
        choose("sigma_schedule", s.sigma_schedule, ("karras", "exponential"))
        choose("prediction_type", s.prediction_type, ("epsilon", "v_prediction"))
        choose("final_sigmas_type", s.final_sigmas_type, ("zero", "sigma_min"))
        return s

    def _prepare(self) -> None:
        pass

    def _descent(self, ramp: Floats) -> Float32s:
        """The levels at the points of ``ramp``, from zero to one, in its precision (eq. 5)."""
        s, number = self.settings, ramp.dtype.type
        if s.sigma_schedule == "exponential":
            logs = linspace32(math.log(s.sigma_min), math.log(s.sigma_max), len(ramp))
            exponential: Float32s = exp32(logs)[::-1].copy()
            return exponential
        first, last = s.sigma_max ** (1 / s.rho), s.sigma_min ** (1 / s.rho)
        levels: Float32s = (number(first) + ramp * number(last - first)) ** number(s.rho)
        return levels.astype(np.float32)

    def _denoised(self, sigma: Any, prediction_type: str) -> Linear:
        """The clean sample, before any clamp."""
        data = np.float32(self.settings.sigma_data)
        spread = np.square(sigma) + np.square(data)
        c_out = sigma * data / np.sqrt(spread)
        skip = X * float(np.square(data) / spread)
        return skip + OUT * float(c_out if prediction_type == "epsilon" else -c_out)

    def _input_scale(self, sigma: Any) -> float:
        return float(
            1 / np.sqrt(np.square(sigma) + np.square(np.float32(self.settings.sigma_data)))
        )

    def _init_noise_sigma(self, grid: Grid) -> float:
        return float((self.settings.sigma_max**2 + 1) ** 0.5)

    def _model_timesteps(self, levels: Float32s) -> Float32s:
        """The timesteps that the model is given for these noise levels."""
        quarter: Float32s = np.float32(0.25) * log32(levels)
        return quarter

    def precondition_inputs(self, sample: Array, sigma: Any) -> Array:
        """What the model sees of a sample at this level."""
        return sample * self._input_scale(np.float32(host(sigma)))

    def precondition_noise(self, sigma: Any) -> Any:
        """The timestep that the model is given for this noise level."""
        return self._model_timesteps(host(sigma).astype(np.float32))

    def precondition_outputs(self, sample: Array, model_output: Array, sigma: Any) -> Array:
        """The clean sample that the model's output predicts."""
        terms = dict(self._denoised(np.float32(host(sigma)), self.settings.prediction_type).terms)
        return sample * terms.get(X.terms[0][0], 0.0) + model_output * terms.get(
            OUT.terms[0][0], 0.0
        )
