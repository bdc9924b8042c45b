"""Euler's method on the probability-flow ODE (Karras et al. 2022, Alg. 2 without its correction)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from . import spacing
from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings, linspace32
from .kinds import host
from .linear import NOISE, OUT, Linear, X
from .noise_levels import ScaledLevels, descent, one_descent
from .rounded import exp32, log32
from .sigmas import Floats
from .table import Array, Row, Schedule

__all__ = [
    "EulerDiscreteScheduler",
    "EulerSettings",
    "churned",
    "input_scales",
    "level_x0",
    "refuse_index",
]


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


class EulerDiscreteScheduler(ScaledLevels):
    """One model call a step, no history; timesteps may be fractional."""

    Settings = EulerSettings
    family = KARRAS
    casts_to_output = True
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

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        levels = self._levels(grid)
        scales = input_scales(levels)
        prediction = self.settings.prediction_type
        rows = []
        for i in range(begin, len(grid.timesteps)):
            sigma = levels[i]
            at, hat = churned(options, sigma, len(levels) - 1)
            level = hat if prediction == "epsilon" else sigma  # as in Diffusers
            x0 = level_x0(prediction, level).substitute({0: at})
            derivative = OUT if prediction == "epsilon" else (at - x0) / hat
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(at + (levels[i + 1] - hat) * derivative,),
                    denoised=level_x0(prediction, sigma),
                    second=x0,
                    draws=bool(hat > sigma),
                    input_scale=float(scales[i]),
                    noising=(1.0, float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows), init_noise_sigma=self._first_sigma(grid))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
    ) -> None:
        """Choose the steps for ``step``: as many, or exactly these timesteps or levels."""
        self._set(num_inference_steps, device, timesteps=timesteps, sigmas=sigmas)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One step down, with as much churn as asked for; see ``Scheduler.step``."""
        refuse_index(timestep)
        options = Options(s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
        return self._step(
            model_output,
            timestep,
            sample,
            return_dict,
            options=options,
            generator=generator,
            noise=noise,
        )

    def get_velocity(self, sample: Array, noise: Array, timesteps: Any) -> Array:
        """Diffusers' velocity, which looks the training table up by step."""
        refuse_index(timesteps)
        return self._velocity(sample, noise, timesteps)


def churned(options: Options, sigma: Any, steps: int) -> tuple[Linear, Any]:
    """The sample with some noise added, and its level (Karras et al. 2022, Alg. 2, lines 4 to 6).

    As in Diffusers the model has seen the sample without that noise.
    """
    if not (options.s_churn > 0 and options.s_tmin <= sigma <= options.s_tmax):
        return X, sigma
    gamma = min(options.s_churn / steps, math.sqrt(2) - 1)
    hat = sigma * np.float32(gamma + 1)
    return X + NOISE * float(np.sqrt(np.square(hat) - np.square(sigma)) * options.s_noise), hat


def refuse_index(timestep: Any) -> None:
    """Refuse the position in a list where a timestep, which may be fractional, belongs."""
    kind = host(timestep).dtype.kind
    if kind in "iu" and not isinstance(timestep, np.ndarray | np.generic):
        raise InputError(
            f"{timestep!r} is an integer, which the timesteps of this scheduler are not. Pass one "
            "of scheduler.timesteps, not its position in the list."
        )


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
