"""TCD: trajectory consistency distillation in a few steps (Zheng et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.errors import InputError

from . import spacing
from .base import Grid, Options, Request, choose
from .betas import BetaSettings
from .kinds import as_scalar
from .linear import NOISE
from .prediction import PREDICTIONS, epsilon_of, x0_of
from .spacing import Int64s
from .table import Array, Row, Schedule
from .variance_preserving import WithVelocity, falling

__all__ = ["TCDScheduler", "TCDSettings"]

_ETA = 0.3


@dataclass(frozen=True, kw_only=True)
class TCDSettings(BetaSettings):
    """The settings of ``TCDScheduler``."""

    beta_start: float = 0.00085
    """Variance added by the first training timestep."""
    beta_end: float = 0.012
    """Variance added by the last."""
    beta_schedule: str = "scaled_linear"
    """How the variance grows in between."""
    original_inference_steps: int = 50
    """Steps of the distillation; those of a run are a subset."""
    clip_sample: bool = False
    """Kept for other classes: TCD clamps nothing."""
    clip_sample_range: float = 1.0
    """Kept for other classes."""
    set_alpha_to_one: bool = True
    """Kept for other classes: no step of TCD ends below timestep zero."""
    steps_offset: int = 0
    """Kept for other classes."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample or v_prediction."""
    thresholding: bool = False
    """Kept for other classes."""
    dynamic_thresholding_ratio: float = 0.995
    """Kept for other classes."""
    sample_max_value: float = 1.0
    """Kept for other classes."""
    timestep_spacing: str = "leading"
    """Kept for other classes: TCD has a spacing of its own."""
    timestep_scaling: float = 10.0
    """Kept for other classes."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be pure noise."""


class TCDScheduler(WithVelocity):
    """Goes ``eta`` further down than asked, and adds noise up to there: at every step but the last.

    ``eta`` is the paper's gamma: 0 draws nothing, 1 goes down to the clean sample each time.
    """

    Settings = TCDSettings
    second = "pred_noised_sample"
    settings: TCDSettings

    def _checked(self, settings: TCDSettings) -> TCDSettings:
        choose("prediction_type", settings.prediction_type, PREDICTIONS)
        return settings

    def _grid(self, request: Request) -> Grid:
        total = self.settings.num_train_timesteps
        if request.timesteps is not None:
            return self._own(request)
        count, original = request.count, request.original_inference_steps
        steps = self.settings.original_inference_steps if original is None else original
        origin = self._origin(original, request.strength)
        if count > min(len(origin), steps, total):
            raise InputError(
                f"{count} steps were asked for, out of {min(len(origin), steps)} that TCD was "
                "distilled with. Use no more, or a larger strength= or original_inference_steps=."
            )
        chosen = np.floor(np.linspace(0, len(origin), count, endpoint=False)).astype(np.int64)
        return Grid(timesteps=origin[::-1][chosen], steps=count)

    def _own(self, request: Request) -> Grid:
        if request.num_inference_steps is not None:
            raise InputError("Pass num_inference_steps or timesteps=, not both.")
        given = spacing.custom(request.timesteps, self.settings.num_train_timesteps)
        kept = min(int(len(given) * request.strength), len(given))
        if kept < 1:
            raise InputError(
                f"strength={request.strength} leaves none of the {len(given)} timesteps. Use more."
            )
        return Grid(timesteps=given[len(given) - kept :], steps=len(given))

    def _origin(self, original: int | None, strength: float) -> Int64s:
        """The timesteps that a run chooses from, rising; all if their number was asked for."""
        total, steps = self.settings.num_train_timesteps, self.settings.original_inference_steps
        if original is not None:
            return np.arange(int(total * strength))
        if steps > total:
            raise InputError(
                f"original_inference_steps={steps} does not fit the {total} timesteps that the "
                f"model was trained with. Use 1 to {total}."
            )
        return np.arange(1, int(steps * strength) + 1) * (total // steps) - 1

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        eta = _ETA if options.eta is None else options.eta
        if not 0 <= eta <= 1:
            raise InputError(f"eta must be 0 (no noise) to 1 (as much as can be); got {eta}.")
        t = grid.timesteps
        after = falling(t, 0)
        below = np.floor(np.float32(1 - eta) * after.astype(np.float32)).astype(np.int64)
        a, a_next, a_below = self._alpha(t), self._alpha(after), self._alpha(below)
        one = np.float32(1)
        rows = []
        for i in range(begin, len(t)):
            signal, sigma = np.sqrt(a[i]), np.sqrt(one - a[i])
            x0 = x0_of(self.settings.prediction_type, signal, sigma)
            epsilon = epsilon_of(self.settings.prediction_type, signal, sigma)
            down = np.sqrt(a_below[i]) * x0 + np.sqrt(one - a_below[i]) * epsilon  # eq. 22
            draws = eta > 0 and i + 1 != grid.steps
            ratio = a_next[i] / a_below[i]
            noisy = np.sqrt(ratio) * down + np.sqrt(one - ratio) * NOISE
            rows.append(
                Row(
                    timestep=int(t[i]),
                    update=(noisy if draws else down,),
                    denoised=x0,
                    second=down,
                    draws=draws,
                    noising=(float(signal), float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows))

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
        eta: float = _ETA,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One step down; see ``Scheduler.step``."""
        return self._step(
            model_output,
            timestep,
            sample,
            return_dict,
            options=Options(eta=eta),
            generator=generator,
            noise=noise,
        )

    def _get_variance(self, timestep: int, prev_timestep: int) -> Any:
        return as_scalar(self._posterior_variance(timestep, prev_timestep))
