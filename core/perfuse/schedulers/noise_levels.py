"""Schedulers whose steps go between noise levels sigma (Karras et al. 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from . import spacing
from .base import Grid, Request, Scheduler
from .betas import Float32s, alphas_cumprod, betas_of
from .kinds import TensorView, as_scalar, host
from .sigmas import Floats, beta_sigmas, exponential, karras, sigma_to_t, sigmas_of
from .table import Array

__all__ = ["NoiseLevels", "ScaledLevels", "TrainedLevels", "descent", "one_descent"]

_DESCENTS = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta_sigmas,
}


def one_descent(settings: Any) -> None:
    """Refuse a config that asks for two shapes of descent."""
    asked = [name for name in _DESCENTS if getattr(settings, name)]
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} are both set. Set at most one of them.")
    if asked == ["use_beta_sigmas"]:
        beta_sigmas(0.1, 1.0, 1)  # raises now, not in the loop, if scipy is missing


def descent(settings: Any) -> str | None:
    """Which setting shapes the descent of the noise levels, if one does."""
    return next((name for name in _DESCENTS if getattr(settings, name)), None)


def len_or_count(request: Request) -> int:
    """The number of steps, asked for as such or by their timesteps."""
    if request.timesteps is None:
        return request.count
    if request.num_inference_steps is not None:
        raise InputError("Pass num_inference_steps or timesteps=, not both.")
    return len(request.timesteps)


class NoiseLevels(Scheduler):
    """Step i goes from ``sigmas[i]`` to ``sigmas[i + 1]``."""

    sigmas = TensorView()
    """float32 [n + 1]: the noise levels, falling."""

    def _levels(self, grid: Grid) -> Float32s:
        assert grid.sigmas is not None
        return grid.sigmas

    def _ended(self, grid: Grid) -> Float32s:
        """The levels and where the last step ends, which is not among those of an untimed flow."""
        levels = self._levels(grid)
        missing = len(levels) == len(grid.timesteps)
        return np.append(levels, np.float32(0)) if missing else levels

    def _descend(self, levels: Floats, count: int) -> Floats:
        """``count`` levels of the asked shape between the ends of ``levels``, or these levels."""
        name = descent(self.settings)
        if name is None:
            return levels
        # Diffusers reads these two from the config even where another class put them there.
        low, high = self._config_end("sigma_min"), self._config_end("sigma_max")
        low = float(levels[-1]) if low is None else low
        high = float(levels[0]) if high is None else high
        return _DESCENTS[name](low, high, count)

    def _config_end(self, key: str) -> float | None:
        value = self.config.get(key)
        return None if value is None else float(value)

    def _signal(self, sigma: Float32s) -> tuple[Float32s, Float32s]:
        """Scales of clean sample and of noise at a level."""
        return np.ones_like(sigma), sigma

    def _noise_scales(self, timesteps: npt.NDArray[Any]) -> tuple[Float32s, Float32s]:
        if self.begin_index is None:
            indices = [self.index_for_timestep(t) for t in timesteps]
        else:
            here = self.begin_index if self.step_index is None else self.step_index
            indices = [here] * len(timesteps)
        return self._signal(self._levels(self._now)[indices])


class TrainedLevels(NoiseLevels):
    """Levels taken from the betas that the model was trained with."""

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
        self._alphas_cumprod = alphas_cumprod(self._betas, avoid_zero=zero_snr)
        self._trained = sigmas_of(self._alphas_cumprod)
        self._log_trained = np.log(self._trained)

    def _to_t(self, sigmas: Floats) -> npt.NDArray[Any]:
        return sigma_to_t(sigmas, self._log_trained)

    def _interpolated(self, timesteps: npt.NDArray[Any]) -> npt.NDArray[Any]:
        levels: Floats = np.interp(timesteps, np.arange(len(self._trained)), self._trained)
        return levels

    def _velocity(self, sample: Array, noise: Array, timesteps: Any) -> Array:
        # As in Diffusers, steps index the training table here: kept, and wrong for most uses.
        steps = [self.index_for_timestep(t) for t in np.atleast_1d(host(timesteps))]
        a = self._alphas_cumprod[steps]
        return self._mix(np.sqrt(a), noise, -np.sqrt(np.float32(1) - a), sample)


class ScaledLevels(TrainedLevels):
    """x = x0 + sigma n: the sample grows with the level, and the model sees it scaled down."""

    needs_steps = False
    scales_input = True

    def _visited(
        self, request: Request, round_karras: bool = False
    ) -> tuple[npt.NDArray[Any], Floats]:
        """The timesteps of as many steps as asked for, or those asked for, and their levels."""
        s, count = self.settings, len_or_count(request)
        if request.timesteps is not None:
            name = descent(s)
            if name is not None:
                raise InputError(
                    f"timesteps= cannot be used with {name}: the levels decide the timesteps "
                    "there. Pass num_inference_steps."
                )
            timesteps = np.asarray(request.timesteps, dtype=np.float32)
        else:
            asked = request.num_train_timesteps
            total = s.num_train_timesteps if asked is None else asked
            timesteps = spacing.single(s.timestep_spacing, total, count, s.steps_offset)
            timesteps = timesteps.astype(np.float32)
        levels: Floats = self._interpolated(timesteps)
        if descent(s) is None:
            return timesteps, levels
        levels = self._descend(levels, count)
        timesteps = self._to_t(levels)
        return (timesteps.round() if round_karras and s.use_karras_sigmas else timesteps), levels

    def _first_sigma(self, grid: Grid) -> float:
        """The scale of the first sample; Diffusers adds the data's variance for leading spacing."""
        highest = self._levels(grid).max()
        if self.settings.timestep_spacing in ("linspace", "trailing"):
            return float(highest)
        return float(np.sqrt(np.square(highest) + np.float32(1)))

    def _init_noise_sigma(self, grid: Grid) -> Any:
        return as_scalar(np.float32(self._first_sigma(grid)))
