"""The schedule: a frozen table of per-step coefficients, and the small engine that applies it.

Every scheduler here is linear in the sample, the present and past model outputs and the noise,
with at most one clamp between two affine maps. What differs is a table, not code.
The engine is duck-typed: numpy arrays and torch tensors take the same path, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from .linear import Linear, combine

__all__ = ["Array", "Row", "Schedule", "State", "Threshold", "to_float32"]

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor
State: TypeAlias = tuple[Array, ...]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Dynamic thresholding of the predicted clean sample (Saharia et al. 2022, section 2.3)."""

    ratio: float
    """The quantile of |x0|, per picture, that becomes the new range."""
    maximum: float
    """The largest range allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One step of the table."""

    timestep: float
    """The timestep that the model is given; fractional for some schedulers."""
    update: tuple[Linear, ...]
    """The new state, one combination per slot; slot 0 is the sample."""
    denoised: Linear
    """The clean sample that the step aims at."""
    convert: Linear | None = None
    """``m`` as a combination of sample and output, before any clamp; None: the output itself."""
    draws: bool = False
    """Whether the step takes noise, even where its coefficient is zero."""
    input_scale: float = 1.0
    """What the sample is multiplied by before the model sees it."""
    second: Linear | None = None
    """What Diffusers' step gives besides the sample, where that is not ``denoised``."""
    noising: tuple[float, float]
    """Scales of the clean sample and of the noise in a sample at this row."""
    log_variance: tuple[float, float] | None = None
    """For a learned range: the least and the greatest log-variance of the noise."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A sampler for one config and one number of steps; a value, safe to share.

    The state is a tuple whose first entry is the sample:

    >>> state = schedule.start(noise)                                         # doctest: +SKIP
    >>> for i, t in enumerate(schedule.timesteps):                            # doctest: +SKIP
    ...     out = model(schedule.scale_input(i, state[0]), t)
    ...     state = schedule.advance(i, state, out, draw() if schedule.draws[i] else None)
    """

    rows: tuple[Row, ...]
    init_noise_sigma: float = 1.0
    """What unit noise is multiplied by to be the first sample."""
    clip: float | None = None
    """Clamp ``m`` to [-clip, clip]."""
    threshold: Threshold | None = None
    learned: str | None = None
    """``learned`` or ``learned_range``: the output's second half of channels is a variance."""
    drops_variance: bool = False
    """The output may carry a second half of channels that the sampler does not read."""
    timesteps: npt.NDArray[np.float32] = field(init=False, repr=False, compare=False)
    """float32 [n]: the model calls, in order."""
    draws: tuple[bool, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        timesteps = np.array([row.timestep for row in self.rows], dtype=np.float32)
        timesteps.flags.writeable = False
        object.__setattr__(self, "timesteps", timesteps)
        object.__setattr__(self, "draws", tuple(row.draws for row in self.rows))
        for i, row in enumerate(self.rows):
            used = [*row.update, row.denoised]
            used += [linear for linear in (row.convert, row.second) if linear is not None]
            if not all(linear.finite for linear in used):
                raise InputError(
                    f"Step {i} of this schedule (timestep {row.timestep:g}) divides by zero: its "
                    "coefficients hold infinity or NaN. With rescale_betas_zero_snr use "
                    "prediction_type 'v_prediction' or 'sample'; otherwise use fewer steps, "
                    "lower_order_final=True or final_sigmas_type='sigma_min'."
                )

    def __len__(self) -> int:
        return len(self.rows)

    def start(self, x: Array) -> State:
        """The state before the first step, from the first noisy sample; float32."""
        x = to_float32(x)
        return (x,) * (len(self.rows[0].update) if self.rows else 1)

    def scale_input(self, i: int, x: Array) -> Array:
        """The sample as the model wants to see it at step ``i``."""
        scale = self.rows[i].input_scale
        return x if scale == 1.0 else x * scale

    def add_noise(self, i: int, original: Array, noise: Array) -> Array:
        """A clean sample brought to the noise level of step ``i``."""
        signal, sigma = self.rows[i].noising
        return to_float32(original) * signal + to_float32(noise) * sigma

    def advance(self, i: int, state: State, model_output: Array, noise: Array = None) -> State:
        """The state after step ``i``. Nothing passed in is changed.

        Raises:
            InputError: the step draws noise and got none.
        """
        row = self.rows[i]
        operands = self._operands(row, state, model_output, noise)
        return tuple([combine(linear, operands) for linear in row.update])

    def denoised(self, i: int, state: State, model_output: Array) -> Array:
        """The clean sample that step ``i`` aims at: a preview, Diffusers' pred_original_sample."""
        row = self.rows[i]
        return combine(row.denoised, self._operands(row, state, model_output, None, quiet=True))

    def second(self, i: int, state: State, model_output: Array, noise: Array = None) -> Array:
        """The second result of Diffusers' ``step``; mostly ``denoised``."""
        row = self.rows[i]
        if row.second is None:
            return self.denoised(i, state, model_output)
        return combine(row.second, self._operands(row, state, model_output, noise))

    def _operands(
        self, row: Row, state: State, out: Array, noise: Array, quiet: bool = False
    ) -> Sequence[Array]:
        x = state[0]
        out = to_float32(out)
        variance = None
        if self.learned is not None or self.drops_variance:
            out, variance = self._split(x, out)
        if row.draws and not quiet:
            if noise is None:
                raise InputError(
                    f"The step at timestep {row.timestep:g} draws noise and got none. "
                    "Pass noise= of the sample's shape at every step that schedule.draws marks."
                )
            noise = to_float32(noise)
            if variance is not None and self.learned is not None:
                noise = noise * self._deviation(row, variance)
        m = out if row.convert is None else combine(row.convert, (*state, out, None, None))
        if self.threshold is not None:
            m = _threshold(m, self.threshold)
        elif self.clip is not None:
            m = m.clip(-self.clip, self.clip)
        return (*state, out, m, noise)

    def _split(self, x: Array, out: Array) -> tuple[Array, Array]:
        channels = x.shape[1]
        if out.shape[1] == 2 * channels:
            return out[:, :channels], out[:, channels:]
        if self.learned is None:
            return out, None
        raise InputError(
            f"variance_type {self.learned!r} needs a model output of {2 * channels} channels for "
            f"a sample of {channels}; the output has {out.shape[1]}. Use variance_type "
            "'fixed_small' for a model that predicts no variance."
        )

    def _deviation(self, row: Row, variance: Array) -> Array:
        if row.log_variance is None:  # the output is the variance itself
            return variance**0.5
        low, high = row.log_variance
        fraction = (variance + 1.0) * 0.5  # Nichol & Dhariwal 2021, eq. 15
        exponent = (fraction * high + (1.0 - fraction) * low) * 0.5
        return exponent.exp() if hasattr(exponent, "exp") else np.exp(exponent)


def to_float32(array: Array) -> Array:
    """The array in float32, itself where it already is."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float32, copy=False)
    return array.float() if hasattr(array, "float") else np.asarray(array, dtype=np.float32)


def _threshold(m: Array, threshold: Threshold) -> Array:
    flat = abs(m.reshape(m.shape[0], -1))
    if hasattr(flat, "quantile"):
        bound = flat.quantile(threshold.ratio, 1)
    else:
        bound = np.quantile(flat, threshold.ratio, axis=1).astype(np.float32)
    bound = bound.clip(1.0, max(threshold.maximum, 1.0))
    bound = bound.reshape(-1, *[1] * (m.ndim - 1))
    return m.clip(-bound, bound) / bound
