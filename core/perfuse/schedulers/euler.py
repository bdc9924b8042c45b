"""Euler's method on the probability-flow ODE (Karras et al. 2022, Alg. 2 without churn)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from . import spacing
from .base import KARRAS_FAMILY, Grid, Request, choose
from .betas import BetaSettings, linspace32
from .linear import OUT, Linear, X
from .noise_levels import TrainedLevels, descent, one_descent
from .rounded import exp32, log32
from .sigmas import Floats
from .table import Array, Row, Schedule

__all__ = ["EulerDiscreteScheduler", "EulerSettings", "first_sigma", "input_scales", "level_x0"]


@dataclass(frozen=True, kw_only=True)
class EulerSettings(BetaSettings):
    """The settings of ``EulerDiscreteScheduler``."""

    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample or v_prediction."""
    interpolation_type: str = "linear"
    """How levels between training timesteps are found: linear or log_linear."""
    use_karras_sigmas: bool = False
    """Descend as Karras et al. do."""
    use_exponential_sigmas: bool = False
    """Descend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Descend by a beta distribution; needs scipy."""
    sigma_min: float | None = None
    """The lowest level of such a descent; None: that of the last step."""
    sigma_max: float | None = None
    """The highest; None: that of the first."""
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    timestep_type: str = "discrete"
    """``continuous`` tells a v-prediction model log(sigma) / 4 as the timestep."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be almost pure noise."""
    final_sigmas_type: str = "zero"
    """Where the last step ends: zero, or sigma_min, the first training level."""


class EulerDiscreteScheduler(TrainedLevels):
    """One model call a step, no history; timesteps may be fractional."""

    Settings = EulerSettings
    accepts = frozenset({"timesteps", "sigmas"})
    family = KARRAS_FAMILY
    casts_to_output = True
    scales_input = True
    settings: EulerSettings

    def _checked(self, s: EulerSettings) -> EulerSettings:
        choose(
            "prediction_type",
            s.prediction_type,
            ("epsilon", "sample", "original_sample", "v_prediction"),
        )
        choose("interpolation_type", s.interpolation_type, ("linear", "log_linear"))
        choose("timestep_type", s.timestep_type, ("discrete", "continuous"))
        choose("final_sigmas_type", s.final_sigmas_type, ("zero", "sigma_min"))
        one_descent(s)
        return s

    @property
    def _continuous(self) -> bool:
        s = self.settings
        return s.timestep_type == "continuous" and s.prediction_type == "v_prediction"

    def _untimed(self) -> Grid:
        levels = self._trained[::-1]
        timesteps = np.arange(len(levels), dtype=np.float32)[::-1].copy()
        if self._continuous:
            timesteps = np.float32(0.25) * log32(levels)
        return Grid(timesteps=timesteps, sigmas=np.append(levels, np.float32(0)), steps=None)

    def _grid(self, request: Request) -> Grid:
        timesteps, sigmas, steps = self._chosen(request)
        sigmas32 = sigmas.astype(np.float32)
        if self._continuous:
            timesteps = np.float32(0.25) * log32(sigmas32[:-1])
        return Grid(timesteps=timesteps.astype(np.float32), sigmas=sigmas32, steps=steps)

    def _chosen(self, request: Request) -> tuple[npt.NDArray[Any], Floats, int]:
        s = self.settings
        asked = (request.num_inference_steps, request.timesteps, request.sigmas)
        if sum(value is not None for value in asked) != 1:
            raise InputError("Pass exactly one of num_inference_steps, timesteps= and sigmas=.")
        if request.sigmas is not None:
            given = np.asarray(request.sigmas, dtype=np.float32)
            return self._to_t(given[:-1]), given, len(given) - 1
        if request.timesteps is None:
            steps = request.count
            timesteps = self._evenly(steps)
        else:
            name = descent(s)
            if name is not None or self._continuous:
                raise InputError(
                    f"timesteps= cannot be used with {name or 'continuous timesteps'}: the levels "
                    "decide the timesteps there. Pass sigmas= or num_inference_steps."
                )
            timesteps = np.asarray(request.timesteps, dtype=np.float32)
            steps = len(timesteps)
        if s.interpolation_type == "linear":
            levels: Floats = self._interpolated(timesteps)
        else:  # Diffusers spaces one level more than there are steps, and adds the last besides
            levels = exp32(linspace32(self._log_trained[-1], self._log_trained[0], steps + 1))
        if descent(s) is not None:
            levels = self._descend(levels, steps)
            timesteps = self._to_t(levels)
        last = self._trained[0] if s.final_sigmas_type == "sigma_min" else 0.0
        return timesteps, np.append(levels, last), steps

    def _evenly(self, steps: int) -> npt.NDArray[Any]:
        s = self.settings
        return spacing.single(
            s.timestep_spacing, s.num_train_timesteps, steps, s.steps_offset
        ).astype(np.float32)

    def _init_noise_sigma(self, grid: Grid) -> float:
        return first_sigma(self._levels(grid), self.settings.timestep_spacing)

    def _table(self, grid: Grid, start: int, eta: float) -> Schedule:
        levels = self._levels(grid)
        scales = input_scales(levels)
        rows = []
        for i in range(start, len(grid.timesteps)):
            sigma, step = levels[i], levels[i + 1] - levels[i]
            x0 = level_x0(self.settings.prediction_type, sigma)
            derivative = OUT if self.settings.prediction_type == "epsilon" else (X - x0) / sigma
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(X + step * derivative,),
                    denoised=x0,
                    input_scale=float(scales[i]),
                    noising=(1.0, float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows), init_noise_sigma=self._init_noise_sigma(grid))

    def get_velocity(self, sample: Array, noise: Array, timesteps: Any) -> Array:
        """Diffusers' velocity, which looks the training table up by step."""
        return self._velocity(sample, noise, timesteps)


def level_x0(prediction_type: str, sigma: Any) -> Linear:
    """The clean sample, where x = x0 + sigma * epsilon and the model sees x / sqrt(sigma^2 + 1)."""
    if prediction_type == "epsilon":
        return X - OUT * float(sigma)
    if prediction_type == "v_prediction":
        square = np.square(sigma) + np.float32(1)
        return OUT * float(-sigma / np.sqrt(square)) + X / float(square)
    return OUT


def input_scales(levels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """1 / sqrt(sigma^2 + 1) for each level."""
    scales: npt.NDArray[Any] = np.float32(1) / np.sqrt(np.square(levels) + np.float32(1))
    return scales


def first_sigma(levels: npt.NDArray[Any], timestep_spacing: str) -> float:
    """The scale of the first sample; Diffusers adds the data's variance for leading spacing."""
    highest = levels.max()
    if timestep_spacing in ("linspace", "trailing"):
        return float(highest)
    return float(np.sqrt(np.square(highest) + np.float32(1)))
