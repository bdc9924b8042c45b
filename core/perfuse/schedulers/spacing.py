"""Which of the training timesteps are visited (Lin et al. 2023, table 2), in Diffusers' dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

__all__ = ["Int64s", "custom", "multistep", "single"]

Int64s = npt.NDArray[np.int64]

_KINDS = ("linspace", "leading", "trailing")


def single(kind: str, total: int, count: int, offset: int) -> npt.NDArray[Any]:
    """``count`` timesteps in falling order, as the single-step schedulers choose them.

    ``linspace`` is left fractional: the caller rounds it or does not.
    """
    if kind == "linspace":
        return np.linspace(0, total - 1, count)[::-1]
    if kind == "leading":
        return (np.arange(count) * (total // count))[::-1].astype(np.float64) + offset
    if kind == "trailing":
        return np.round(np.arange(total, 0, -total / count)) - 1
    raise _unknown(kind)


def multistep(kind: str, total: int, last: int, count: int, offset: int) -> Int64s:
    """``count`` timesteps below ``last`` in falling order, as DPM-Solver and UniPC choose them."""
    if kind == "linspace":
        points: npt.NDArray[Any] = np.linspace(0, last - 1, count + 1).round()[::-1][:-1]
    elif kind == "leading":
        points = (np.arange(count + 1) * (last // (count + 1)))[::-1][:-1] + float(offset)
    elif kind == "trailing":
        points = np.arange(last, 0, -total / count).round() - 1
    else:
        raise _unknown(kind)
    return points.astype(np.int64)


def custom(timesteps: Any, total: int) -> Int64s:
    """The caller's own timesteps, which must fall and be known to the model."""
    given = np.asarray(timesteps, dtype=np.int64)
    if given.ndim != 1 or given.size == 0:
        raise InputError(f"timesteps= must be a list of at least one timestep; got {timesteps!r}.")
    if np.any(np.diff(given) >= 0):
        raise InputError(f"timesteps= must be in falling order without repeats; got {timesteps}.")
    if given[0] >= total:
        raise InputError(
            f"timesteps= starts at {given[0]}; the model was trained with {total} timesteps, so "
            f"start at {total - 1} or below."
        )
    return given


def _unknown(kind: str) -> InputError:
    return InputError(f"timestep_spacing {kind!r} is not known. Use one of: {', '.join(_KINDS)}.")
