"""Schedulers whose tables are indexed by a whole timestep: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) n."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from . import spacing
from .base import Grid, Request, Scheduler
from .betas import Float32s, alphas_cumprod, betas_of
from .kinds import TensorView, as_scalar, host, torch_here
from .linear import Linear, M
from .prediction import x0_of
from .spacing import Int64s
from .table import Array, Threshold

__all__ = ["VariancePreserving", "WithVelocity", "converted", "falling"]


class VariancePreserving(Scheduler):
    """DDPM, DDIM, PNDM and LCM: the sample keeps unit variance, the model sees it as it is."""

    extra_betas: ClassVar[tuple[str, ...]] = ()

    betas = TensorView()
    """The variances that each training timestep adds."""
    alphas = TensorView()
    alphas_cumprod = TensorView()
    """How much of the signal's variance is left at each training timestep."""

    def _prepare(self) -> None:
        s = self.settings
        zero_snr = getattr(s, "rescale_betas_zero_snr", False)
        self._betas = betas_of(s, self.extra_betas, rescale_zero_snr=zero_snr)
        self._alphas = np.float32(1) - self._betas
        self._alphas_cumprod = alphas_cumprod(self._betas)
        to_one = getattr(s, "set_alpha_to_one", True)
        self._final_alpha = np.float32(1.0 if to_one else self._alphas_cumprod[0])

    def _untimed(self) -> Grid:
        total = self.settings.num_train_timesteps
        return Grid(timesteps=np.arange(total)[::-1].copy(), steps=None)

    def _not_too_many(self, count: int) -> None:
        total = self.settings.num_train_timesteps
        if count > total:
            raise InputError(
                f"{count} steps were asked for; the model was trained with {total} timesteps. "
                f"Use at most {total}."
            )

    def _spaced(self, request: Request) -> Grid:
        s = self.settings
        if request.timesteps is not None:
            if request.num_inference_steps is not None:
                raise InputError("Pass num_inference_steps or timesteps=, not both.")
            given = spacing.custom(request.timesteps, s.num_train_timesteps)
            return Grid(timesteps=given, steps=len(given))
        count = request.count
        self._not_too_many(count)
        points = spacing.single(s.timestep_spacing, s.num_train_timesteps, count, s.steps_offset)
        return Grid(timesteps=points.round().astype(np.int64), steps=count)

    def _alpha(self, t: npt.NDArray[Any]) -> Float32s:
        """a_t for each timestep; the final one where the timestep is below zero."""
        total = len(self._alphas_cumprod)
        if t.size and t.max() >= total:
            raise InputError(
                f"Timestep {int(t.max())} is past the {total} that the model was trained with. "
                "Use fewer steps or steps_offset=0."
            )
        return np.where(t >= 0, self._alphas_cumprod[np.maximum(t, 0)], self._final_alpha)

    @property
    def final_alpha_cumprod(self) -> Any:
        """What is left of the signal where the last step ends."""
        torch = torch_here()
        return self._final_alpha if torch is None else torch.tensor(float(self._final_alpha))

    def _posterior_variance(self, t: Any, after: Any) -> Any:
        """The variance of x at ``after`` given x at ``t`` and x0 (Ho et al. 2020, eq. 7)."""
        one = np.float32(1)
        a, a_next = (self._alpha(np.atleast_1d(host(step)).astype(np.int64)) for step in (t, after))
        with np.errstate(all="ignore"):
            return (one - a_next) / (one - a) * (one - a / a_next)

    def _noise_scales(self, timesteps: npt.NDArray[Any]) -> tuple[Float32s, Float32s]:
        a = self._alpha(timesteps.astype(np.int64))
        return np.sqrt(a), np.sqrt(np.float32(1) - a)

    def _clamp(self) -> tuple[float | None, Threshold | None]:
        s = self.settings
        if s.thresholding:
            ratio, maximum = s.dynamic_thresholding_ratio, s.sample_max_value
            return None, Threshold(ratio=ratio, maximum=maximum)
        return (s.clip_sample_range if s.clip_sample else None), None


class WithVelocity(VariancePreserving):
    """Those for which Diffusers has ``get_velocity``."""

    custom_timesteps = False

    def previous_timestep(self, timestep: Any) -> Any:
        """The timestep after this one on the way down; -1 after the last.

        Raises:
            InputError: it is none of those that were chosen.
        """
        if self.num_inference_steps is None:
            return timestep - 1
        found = np.flatnonzero(self._timesteps == host(timestep))
        if len(found) == 0:
            raise InputError(
                f"Timestep {timestep} is not one of this scheduler's. Pass one of "
                "scheduler.timesteps."
            )
        return as_scalar(falling(self._timesteps, -1)[found[:1]])

    def get_velocity(self, sample: Array, noise: Array, timesteps: Any) -> Array:
        """What a v-prediction model should answer (Salimans & Ho 2022)."""
        signal, sigma = self._noise_scales(np.atleast_1d(host(timesteps)))
        return self._mix(signal, noise, -sigma, sample)


def converted(
    prediction_type: str, signal: Any, sigma: Any, clamped: bool
) -> tuple[Linear | None, Linear]:
    """A row's ``convert``, and the symbol for x0 to write its update with.

    Without a clamp the expression itself is the symbol, and the step is one combination.
    """
    if not clamped:
        return None, x0_of(prediction_type, signal, sigma)
    # Where no signal is left x0 is infinite and the clamp takes it back: a power of two will do.
    return x0_of(prediction_type, max(float(signal), 2.0**-60), sigma), M


def falling(timesteps: Int64s, last: int) -> Int64s:
    """The timestep after each one; ``last`` after the last."""
    return np.append(timesteps[1:], last)
