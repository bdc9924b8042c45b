"""Noise schedules of the forward process, in the float32 that checkpoints were made with.

float64 would be a different model: sigma_max is 14.6146469 in float32, 14.6146412 in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

__all__ = ["BetaSettings", "Float32s", "alphas_cumprod", "betas_of", "linspace32"]

Float32s: TypeAlias = npt.NDArray[Any]  # float32; numpy's stubs lose track of it


@dataclass(frozen=True, kw_only=True)
class BetaSettings:
    """The forward process; every scheduler but the flow ones has these settings."""

    num_train_timesteps: int = 1000
    """Number of noise levels that the model was trained with."""
    beta_start: float = 0.0001
    """Variance added by the first of them."""
    beta_end: float = 0.02
    """Variance added by the last."""
    beta_schedule: str = "linear"
    """How the variance grows in between: linear, scaled_linear, squaredcos_cap_v2."""
    trained_betas: Sequence[float] | None = None
    """The variances themselves, instead of the four settings above."""


def linspace32(start: float, end: float, count: int) -> Float32s:
    """``torch.linspace`` in float32, bit for bit: two halves, each stepping from its own end."""
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first], dtype=np.float32)
    step = np.float64((last - first) / np.float32(count - 1))
    i = np.arange(count)
    # torch's kernel multiplies and adds in one rounding; float64 holds the product exactly.
    rising = (np.float64(first) + step * i).astype(np.float32)
    falling = (np.float64(last) - step * (count - 1 - i)).astype(np.float32)
    return np.where(i < count // 2, rising, falling)


def betas_of(
    settings: Any, extra: tuple[str, ...] = (), *, rescale_zero_snr: bool = False
) -> Float32s:
    """The variances beta_1 … beta_T of settings that have those of ``BetaSettings``; with ``rescale_zero_snr`` nothing of the signal is left at T.

    Raises:
        InputError: ``beta_schedule`` is none of those listed there.
    """
    betas = _betas_of(settings, extra)
    return _rescale_zero_terminal_snr(betas) if rescale_zero_snr else betas


def _betas_of(settings: Any, extra: tuple[str, ...]) -> Float32s:
    start, end, count = settings.beta_start, settings.beta_end, settings.num_train_timesteps
    if settings.trained_betas is not None:
        return np.asarray(settings.trained_betas, dtype=np.float32)
    kind = settings.beta_schedule
    known = ("linear", "scaled_linear", "squaredcos_cap_v2", *extra)
    if kind not in known:
        raise InputError(
            f"beta_schedule {kind!r} is not known here. Use one of: {', '.join(known)}."
        )
    if kind == "linear":
        return linspace32(start, end, count)
    if kind == "scaled_linear":
        return np.square(linspace32(start**0.5, end**0.5, count))
    if kind in _ALPHA_BARS:
        return _from_alpha_bar(_ALPHA_BARS[kind], count)
    ramp = linspace32(-6, 6, count)
    sigmoid = (1 / (1 + np.exp(-ramp.astype(np.float64)))).astype(np.float32)
    return sigmoid * np.float32(end - start) + np.float32(start)


def alphas_cumprod(betas: Float32s, *, avoid_zero: bool = False) -> Float32s:
    """The running products alpha_bar_1 … alpha_bar_T.

    ``avoid_zero`` puts the last one at 2^-24, so that its sigma is finite.
    """
    product = _cumprod(np.float32(1) - betas)
    if avoid_zero:
        product[-1] = 2**-24
    return product


def _cumprod(alphas: Float32s) -> Float32s:
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)  # torch accumulates in float64


def _rescale_zero_terminal_snr(betas: Float32s) -> Float32s:
    """Shift and scale so that nothing of the signal is left at T (Lin et al. 2023, Alg. 1)."""
    root = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    bar = np.square(root)
    alphas = np.concatenate([bar[:1], bar[1:] / bar[:-1]])
    return np.float32(1) - alphas


def _from_alpha_bar(alpha_bar: Callable[[float], float], count: int) -> Float32s:
    # Nichol & Dhariwal 2021, eq. 17: beta is capped at 0.999 near the end.
    betas = [
        min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)
    ]
    return np.array(betas, dtype=np.float32)


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def _exponential(t: float) -> float:
    return math.exp(t * -12.0)


_ALPHA_BARS = {"squaredcos_cap_v2": _cosine, "laplace": _laplace, "exp": _exponential}
