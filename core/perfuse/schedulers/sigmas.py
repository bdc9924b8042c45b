"""Noise levels: from alphas to sigmas, from sigmas to timesteps, and the shapes of their descent."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from .betas import Float32s

__all__ = [
    "Floats",
    "beta_sigmas",
    "calculate_shift",
    "exponential",
    "flow_shift",
    "karras",
    "sigma_to_t",
    "sigmas_of",
    "stretch_to_terminal",
    "time_shift",
]

Floats: TypeAlias = npt.NDArray[Any]  # float32 or float64


def sigmas_of(alphas_cumprod: Float32s) -> Float32s:
    """sigma = sqrt((1 - alpha_bar) / alpha_bar), by rising timestep."""
    with np.errstate(divide="ignore"):
        sigmas: Float32s = np.sqrt((np.float32(1) - alphas_cumprod) / alphas_cumprod)
    return sigmas


def sigma_to_t(sigmas: Floats, log_sigmas: Floats) -> Floats:
    """The fractional timestep of each sigma, by linear interpolation in log sigma."""
    log_sigma = np.log(np.maximum(sigmas, 1e-10))
    below = log_sigma[:, None] >= log_sigmas[None, :]
    low = np.cumsum(below, axis=1).argmax(axis=1).clip(max=len(log_sigmas) - 2)
    high = low + 1
    w = (log_sigmas[low] - log_sigma) / (log_sigmas[low] - log_sigmas[high])
    w = np.clip(w, 0, 1)
    timesteps: Floats = (1 - w) * low + w * high
    return timesteps


def karras(sigma_min: float, sigma_max: float, count: int) -> Floats:
    """Karras et al. 2022, eq. 5, with rho = 7."""
    rho = 7.0
    ramp = np.linspace(0, 1, count)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas: Floats = (first + ramp * (last - first)) ** rho
    return sigmas


def exponential(sigma_min: float, sigma_max: float, count: int) -> Floats:
    """Even steps in log sigma."""
    sigmas: Floats = np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), count))
    return sigmas


def beta_sigmas(sigma_min: float, sigma_max: float, count: int) -> Floats:
    """Quantiles of a beta distribution (Lee et al. 2024, "Beta Sampling is All You Need").

    Raises:
        InputError: scipy, which holds the quantile function, is not installed.
    """
    try:
        from scipy.stats import beta  # type: ignore[import-untyped, unused-ignore]
    except ImportError as exc:
        raise InputError(
            "use_beta_sigmas needs scipy, which is not installed. "
            "Install it (pip install scipy) or use use_karras_sigmas."
        ) from exc
    quantiles = beta.ppf(1 - np.linspace(0, 1, count), 0.6, 0.6)
    return np.asarray(sigma_min + quantiles * (sigma_max - sigma_min), dtype=np.float64)


def flow_shift(sigmas: Floats, shift: float) -> Floats:
    """Move flow-matching levels towards noise (Esser et al. 2024, eq. 23)."""
    shifted: Floats = shift * sigmas / (1 + (shift - 1) * sigmas)
    return shifted


def time_shift(sigmas: Floats, mu: float, kind: str) -> Floats:
    """The shift that depends on the picture's size, through ``mu``."""
    factor = math.exp(mu) if kind == "exponential" else mu
    shifted: Floats = factor / (factor + (1 / sigmas - 1))
    return shifted


def stretch_to_terminal(sigmas: Floats, terminal: float) -> Floats:
    """Stretch the levels so that the last one is ``terminal``.

    Raises:
        InputError: the last level is all noise, as a single one is.
    """
    rest = 1 - sigmas
    if rest[-1] == 0:
        raise InputError(
            f"shift_terminal={terminal} stretches the levels to end there; of {len(sigmas)}, the last "
            "is all noise, which no stretching changes. Use two steps or more."
        )
    stretched: Floats = 1 - rest / (rest[-1] / (1 - terminal))
    return stretched


def calculate_shift(
    image_seq_len: int,
    base_seq_len: int = 256,
    max_seq_len: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """``mu`` of a picture of ``image_seq_len`` tokens: a straight line through two sizes.

    >>> calculate_shift(256), calculate_shift(4096)
    (0.5, 1.15)
    """
    slope = (max_shift - base_shift) / (max_seq_len - base_seq_len)
    return image_seq_len * slope + (base_shift - slope * base_seq_len)
