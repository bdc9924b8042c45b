"""DDIM: the deterministic sampler, with noise as an option (Song et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.errors import InputError

from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .kinds import as_scalar, host
from .linear import NOISE, X
from .prediction import PREDICTIONS, epsilon_of
from .spacing import Int64s
from .table import Array, Row, Schedule
from .variance_preserving import WithVelocity, converted

__all__ = ["DDIMScheduler", "DDIMSettings"]


@dataclass(frozen=True, kw_only=True)
class DDIMSettings(BetaSettings):
    """The settings of ``DDIMScheduler``."""

    clip_sample: bool = True
    """Clamp the predicted clean sample."""
    set_alpha_to_one: bool = True
    """Let the last step end at no noise rather than at the first training timestep's."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample or v_prediction."""
    thresholding: bool = False
    """Clamp it to a quantile of itself instead."""
    dynamic_thresholding_ratio: float = 0.995
    """Which quantile."""
    clip_sample_range: float = 1.0
    """The range of ``clip_sample``."""
    sample_max_value: float = 1.0
    """The largest range of ``thresholding``."""
    timestep_spacing: str = "leading"
    """linspace, leading or trailing."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be pure noise."""


class DDIMScheduler(WithVelocity):
    """Song et al.'s sampler; a step may be taken at any timestep."""

    Settings = DDIMSettings
    family = KARRAS
    settings: DDIMSettings

    def _checked(self, settings: DDIMSettings) -> DDIMSettings:
        choose("prediction_type", settings.prediction_type, PREDICTIONS)
        return settings

    def _grid(self, request: Request) -> Grid:
        return self._spaced(request)

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        eta = 0.0 if options.eta is None else options.eta
        t, reclip = grid.timesteps[begin:], options.clipped_output
        if eta < 0:
            raise InputError(f"eta must be 0 (no noise) to 1 (as much as DDPM); got {eta}.")
        clip, threshold = self._clamp()
        clamped = clip is not None or threshold is not None
        total = self.settings.num_train_timesteps
        assert grid.steps is not None
        after = t - total // grid.steps
        return Schedule(
            rows=tuple(self._rows(t, after, eta, clamped, reclip)),
            clip=clip,
            threshold=threshold,
        )

    def _rows(self, t: Int64s, after: Int64s, eta: float, clamped: bool, reclip: bool) -> list[Row]:
        prediction = self.settings.prediction_type
        a, a_next = self._alpha(t), self._alpha(after)
        one = np.float32(1)
        with np.errstate(all="ignore"):  # the schedule refuses non-finite values
            variance = (one - a_next) / (one - a) * (one - a / a_next)
            deviation = np.sqrt(variance) * np.float32(eta)  # eq. 16
            direction = np.sqrt(one - a_next - np.square(deviation))
        rows = []
        for i, step in enumerate(t.tolist()):
            signal, sigma = np.sqrt(a[i]), np.sqrt(one - a[i])
            convert, x0 = converted(prediction, signal, sigma, clamped)
            epsilon = epsilon_of(prediction, signal, sigma)
            if reclip:  # the noise that the clamped x0 implies
                epsilon = (X - signal * x0) / sigma
            down = np.sqrt(a_next[i]) * x0 + direction[i] * epsilon  # eq. 12
            rows.append(
                Row(
                    timestep=step,
                    convert=convert,
                    update=(down + deviation[i] * NOISE if eta > 0 else down,),
                    denoised=x0,
                    draws=eta > 0,
                    noising=(float(signal), float(sigma)),
                )
            )
        return rows

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Array = None,
        return_dict: bool = True,
    ) -> Any:
        """One step down from any timestep; see ``Scheduler.step``."""
        self._check_steps()
        grid = Grid(timesteps=np.array([int(host(timestep))]), steps=self.num_inference_steps)
        options = Options(eta=eta, clipped_output=use_clipped_model_output)
        return self._step_alone(
            self._table(grid, 0, options),
            model_output,
            sample,
            return_dict,
            generator=generator,
            noise=variance_noise,
        )

    def _get_variance(self, timestep: int, prev_timestep: int) -> Any:
        return as_scalar(self._posterior_variance(timestep, prev_timestep))
