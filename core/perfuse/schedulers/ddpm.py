"""DDPM: ancestral sampling of the Markov chain (Ho et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.errors import InputError

from .base import KARRAS_FAMILY, Grid, Request, choose
from .betas import BetaSettings
from .kinds import host
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
    accepts = frozenset({"timesteps"})
    family = KARRAS_FAMILY
    extra_betas: ClassVar[tuple[str, ...]] = ("sigmoid", "laplace")
    settings: DDPMSettings

    def _checked(self, settings: DDPMSettings) -> DDPMSettings:
        choose("prediction_type", settings.prediction_type, PREDICTIONS)
        choose("variance_type", settings.variance_type, _VARIANCES)
        return settings

    def _grid(self, request: Request) -> Grid:
        return self._spaced(request)

    def _table(self, grid: Grid, start: int, eta: float) -> Schedule:
        after = falling(grid.timesteps, -1)
        return self._steps(grid.timesteps[start:], after[start:])

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
        with np.errstate(all="ignore"):  # what is not finite is refused by the schedule
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

    def previous_timestep(self, timestep: int) -> int:
        """The timestep after this one on the way down; -1 after the last."""
        if self.num_inference_steps is None:
            return int(timestep) - 1
        found = np.flatnonzero(self.timesteps == timestep)
        if len(found) == 0:
            raise InputError(
                f"Timestep {timestep} is not one of this scheduler's. Pass one of "
                "scheduler.timesteps."
            )
        return int(falling(self.timesteps, -1)[found[0]])

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        *,
        eta: float = 0.0,
        generator: Any = None,
        noise: Array = None,
        variance_noise: Array = None,
        return_dict: bool = True,
    ) -> Any:
        """One step down from any timestep; see ``Scheduler.step``."""
        t = int(host(timestep))
        table = self._steps(np.array([t]), np.array([self.previous_timestep(t)]))
        return self._apply_alone(
            table, model_output, sample, noise, variance_noise, generator, return_dict
        )
