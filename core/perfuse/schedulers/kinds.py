"""Small helpers to treat numpy arrays and torch tensors alike without importing torch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from perfuse.arrays.noise import noise_for

__all__ = ["cast", "draw", "host", "like", "promoted"]


def host(values: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Numbers, an array or a tensor as a numpy array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def like(values: Any, array: Any) -> Any:
    """numpy values as an array of the kind and device of ``array``."""
    if isinstance(array, np.ndarray) or not hasattr(array, "detach"):
        return values
    return sys.modules["torch"].from_numpy(np.ascontiguousarray(values)).to(array.device)


def promoted(a: Any, b: Any) -> Any:
    """The dtype that an operation between the two would have."""
    if isinstance(a, np.ndarray):
        return np.result_type(a, b)
    return sys.modules["torch"].promote_types(a.dtype, b.dtype)


def cast(array: Any, dtype: Any) -> Any:
    """The array in this dtype, itself where it already is."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    return array.to(dtype)


def draw(array: Any, generator: Any) -> Any:
    """Unit noise of the shape, kind and device of ``array``, in float32.

    ``generator`` is a ``torch.Generator``, anything with ``.normal(shape)``, a list with one of
    these a picture, or None for noise that nobody can draw again.
    """
    shape = tuple(array.shape)
    if generator is None and hasattr(array, "detach"):
        torch = sys.modules["torch"]
        return torch.randn(shape, device=array.device, dtype=torch.float32)
    return like(noise_for(generator=generator, batch=shape[0]).normal(shape), array)
