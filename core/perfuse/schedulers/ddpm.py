"""DDPM: ancestral sampling of the Markov chain (Ho et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.errors import InputError

from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .kinds import as_scalar, host
from .linear import NOISE, X
from .prediction import PREDICTIONS
from .rounded import exp32, log32
from .sigmas import Floats
from .spacing import Int64s
from .table import Array, Row, Schedule
from .variance_preserving import WithVelocity, converted, falling

__all__ = ["DDPMScheduler", "DDPMSettings"]

_VARIANCES = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)


@dataclass(frozen=True, kw_only=True)
class DDPMSettings(BetaSettings):
    """The settings of ``DDPMScheduler``."""

    variance_type: str = "fixed_small"
    """Whose variance the noise of a step has: the posterior's, beta's, or the model's."""
    clip_sample: bool = True
    """Clamp the predicted clean sample."""
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
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be pure noise."""


class DDPMScheduler(WithVelocity):
    """The original sampler; a step may be taken at any timestep without ``set_timesteps``."""

    Settings = DDPMSettings
    family = KARRAS
    extra_betas: ClassVar[tuple[str, ...]] = ("sigmoid", "laplace")
    settings: DDPMSettings

    def _checked(self, settings: DDPMSettings) -> DDPMSettings:
        choose("prediction_type", settings.prediction_type, PREDICTIONS)
        choose("variance_type", settings.variance_type, _VARIANCES)
        return settings

    def _grid(self, request: Request) -> Grid:
        return self._spaced(request)

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        after = falling(grid.timesteps, -1)
        return self._steps(grid.timesteps[begin:], after[begin:])

    def _steps(self, t: Int64s, after: Int64s) -> Schedule:
        clip, threshold = self._clamp()
        kind = self.settings.variance_type
        return Schedule(
            rows=tuple(self._rows(t, after, clip is not None or threshold is not None)),
            clip=clip,
            threshold=threshold,
            learned=kind if kind.startswith("learned") else None,
        )

    def _rows(self, t: Int64s, after: Int64s, clamped: bool) -> list[Row]:
        a = self._alpha(t)
        a_next = np.where(after >= 0, self._alpha(after), np.float32(1))
        one = np.float32(1)
        with np.errstate(all="ignore"):  # the schedule refuses non-finite values
            alpha_t = a / a_next
            beta_t = one - alpha_t
            # The posterior's mean (Ho et al. 2020, eq. 7).
            of_x0 = np.sqrt(a_next) * beta_t / (one - a)
            of_x = np.sqrt(alpha_t) * (one - a_next) / (one - a)
            posterior = np.maximum((one - a_next) / (one - a) * (one - a / a_next), 1e-20)
            log_small, log_large = log32(posterior), log32(one - a / a_next)
            deviation = self._deviation(posterior, one - a / a_next)
        if self.settings.variance_type == "fixed_large_log" and np.any(t > 0):
            raise InputError(
                "variance_type 'fixed_large_log' takes the root of a negative number, which is "
                "NaN in Diffusers too. Use variance_type='fixed_large'."
            )
        learned_range = self.settings.variance_type == "learned_range"
        rows = []
        for i, step in enumerate(t.tolist()):
            signal, sigma = np.sqrt(a[i]), np.sqrt(one - a[i])
            convert, x0 = converted(self.settings.prediction_type, signal, sigma, clamped)
            mean = of_x0[i] * x0 + of_x[i] * X
            rows.append(
                Row(
                    timestep=step,
                    convert=convert,
                    update=(mean + deviation[i] * NOISE if step > 0 else mean,),
                    denoised=x0,
                    draws=step > 0,
                    noising=(float(signal), float(sigma)),
                    log_variance=(
                        (float(log_small[i]), float(log_large[i])) if learned_range else None
                    ),
                )
            )
        return rows

    def _deviation(self, posterior: Floats, beta: Floats) -> Floats:
        kind = self.settings.variance_type
        if kind == "fixed_small":
            deviation: Floats = np.sqrt(posterior)
        elif kind == "fixed_small_log":
            deviation = exp32(np.float32(0.5) * log32(posterior))
        elif kind.startswith("fixed"):
            deviation = np.sqrt(beta)
        else:  # the engine scales the noise by the model's own
            deviation = np.ones_like(posterior)
        return deviation

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None
    ) -> None:
        """Choose the steps for ``step``, as many or exactly these."""
        self._set(num_inference_steps, device, timesteps=timesteps)
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
        """One step down from any timestep; see ``Scheduler.step``."""
        t = int(host(timestep))
        table = self._steps(np.array([t]), np.array([int(self.previous_timestep(t))]))
        return self._step_alone(
            table, model_output, sample, return_dict, generator=generator, noise=noise
        )

    def _get_variance(
        self, t: int, predicted_variance: Array = None, variance_type: str | None = None
    ) -> Any:
        after = int(self.previous_timestep(int(host(t))))
        posterior = np.maximum(self._posterior_variance(t, after), np.float32(1e-20))
        a, a_next = (self._alpha(np.array([int(step)])) for step in (host(t), after))
        beta, kind = np.float32(1) - a / a_next, variance_type or self.settings.variance_type
        if kind == "learned":
            return predicted_variance
        if kind == "learned_range":
            low, high = float(log32(posterior)[0]), float(log32(beta)[0])
            fraction = (predicted_variance + 1) / 2
            return fraction * high + (1 - fraction) * low
        return as_scalar(
            {
                "fixed_small": posterior,
                "fixed_small_log": self._deviation(posterior, beta),
                "fixed_large": beta,
                "fixed_large_log": log32(beta),
            }[kind]
        )
