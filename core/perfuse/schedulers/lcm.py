"""LCM: sampling of a latent consistency model in a few steps (Luo et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.errors import InputError

from . import spacing
from .base import Grid, Options, Request, choose
from .betas import BetaSettings
from .linear import NOISE, X
from .prediction import PREDICTIONS
from .spacing import Int64s
from .table import Array, Row, Schedule
from .variance_preserving import WithVelocity, converted, falling

__all__ = ["LCMScheduler", "LCMSettings"]

_SIGMA_DATA = 0.5


@dataclass(frozen=True, kw_only=True)
class LCMSettings(BetaSettings):
    """The settings of ``LCMScheduler``."""

    beta_start: float = 0.00085
    """Variance added by the first training timestep."""
    beta_end: float = 0.012
    """Variance added by the last."""
    beta_schedule: str = "scaled_linear"
    """How the variance grows in between."""
    original_inference_steps: int = 50
    """Steps of the distillation; those of a run are a subset."""
    clip_sample: bool = False
    """Clamp the predicted clean sample."""
    clip_sample_range: float = 1.0
    """The range of ``clip_sample``."""
    set_alpha_to_one: bool = True
    """Kept for other classes: no step of LCM ends below timestep zero."""
    steps_offset: int = 0
    """Kept for other classes."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample or v_prediction."""
    thresholding: bool = False
    """Clamp to a quantile of the prediction itself instead."""
    dynamic_thresholding_ratio: float = 0.995
    """Which quantile."""
    sample_max_value: float = 1.0
    """The largest range of ``thresholding``."""
    timestep_spacing: str = "leading"
    """Kept for other classes: LCM has a spacing of its own."""
    timestep_scaling: float = 10.0
    """Sharpness of the boundary condition: the larger, the less of the sample is kept."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be pure noise."""


class LCMScheduler(WithVelocity):
    """Jumps to the clean sample and adds noise again, at every step but the last."""

    Settings = LCMSettings
    second = "denoised"
    settings: LCMSettings

    def _checked(self, settings: LCMSettings) -> LCMSettings:
        choose("prediction_type", settings.prediction_type, PREDICTIONS)
        return settings

    def _grid(self, request: Request) -> Grid:
        origin = self._origin(request)
        if request.timesteps is None:
            count = request.count
            self._not_too_many(count)
            if count > len(origin):
                raise InputError(
                    f"{count} steps were asked for, out of {len(origin)} that LCM was distilled "
                    f"with. Use at most {len(origin)}, or a larger strength= or "
                    "original_inference_steps=."
                )
            chosen = np.floor(np.linspace(0, len(origin), count, endpoint=False)).astype(np.int64)
            return Grid(timesteps=origin[::-1][chosen], steps=count)
        if request.num_inference_steps is not None:
            raise InputError("Pass num_inference_steps or timesteps=, not both.")
        given = spacing.custom(request.timesteps, self.settings.num_train_timesteps)
        kept = min(int(len(given) * request.strength), len(given))
        if kept < 1:
            raise InputError(
                f"strength={request.strength} leaves none of the {len(given)} timesteps. Use more."
            )
        return Grid(timesteps=given[len(given) - kept :], steps=len(given))

    def _origin(self, request: Request) -> Int64s:
        """The timesteps of the distillation, rising."""
        steps = request.original_inference_steps
        steps = self.settings.original_inference_steps if steps is None else steps
        total = self.settings.num_train_timesteps
        if not 1 <= steps <= total:
            raise InputError(
                f"original_inference_steps={steps} does not fit the {total} timesteps that the "
                f"model was trained with. Use 1 to {total}."
            )
        return np.arange(1, int(steps * request.strength) + 1) * (total // steps) - 1

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        t = grid.timesteps
        after = falling(t, t[-1])
        clip, threshold = self._clamp()
        clamped = clip is not None or threshold is not None
        a, a_next = self._alpha(t), self._alpha(after)
        one = np.float32(1)
        # The boundary condition f(x, 0) = x (Luo et al. 2023, section 3).
        scaled = t.astype(np.float32) * np.float32(self.settings.timestep_scaling)
        spread = np.square(scaled) + np.float32(_SIGMA_DATA**2)
        c_skip, c_out = np.float32(_SIGMA_DATA**2) / spread, scaled / np.sqrt(spread)
        rows = []
        for i in range(begin, len(t)):
            signal, sigma = np.sqrt(a[i]), np.sqrt(one - a[i])
            convert, x0 = converted(self.settings.prediction_type, signal, sigma, clamped)
            denoised = c_out[i] * x0 + c_skip[i] * X
            last = i == grid.steps - 1 if grid.steps is not None else False
            noisy = np.sqrt(a_next[i]) * denoised + np.sqrt(one - a_next[i]) * NOISE
            rows.append(
                Row(
                    timestep=int(t[i]),
                    convert=convert,
                    update=(denoised if last else noisy,),
                    denoised=denoised,
                    draws=not last,
                    noising=(float(signal), float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows), clip=clip, threshold=threshold)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        original_inference_steps: int | None = None,
        timesteps: Any = None,
        strength: float = 1.0,
    ) -> None:
        """Choose the steps for ``step``, out of those of the distillation or exactly these."""
        self._set(
            num_inference_steps,
            device,
            original_inference_steps=original_inference_steps,
            timesteps=timesteps,
            strength=strength,
        )
        self.custom_timesteps = timesteps is not None

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
