"""Numpy arrays and torch tensors alike, without importing torch."""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.contract.spec import Array

__all__ = [
    "concatenate",
    "dot",
    "is_torch",
    "join_features",
    "mean_ratio",
    "mean_size",
    "place",
    "shown",
    "std",
    "to_numpy",
    "total",
    "with_gain",
    "zeros",
    "zeros_like",
]


def is_torch(array: Array) -> bool:
    """Whether it is a torch tensor. Whoever made one has imported torch already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def to_numpy(array: Array) -> npt.NDArray[Any]:
    """As a numpy array on the host; float32 where it is floating-point."""
    if is_torch(array):
        array = array.detach()
        array = (array.float() if array.is_floating_point() else array).cpu().numpy()
    found: npt.NDArray[Any] = np.asarray(array)
    return found.astype(np.float32) if found.dtype.kind == "f" and found.itemsize != 4 else found


def place(array: Array, torch_device: str | None) -> Array:
    """As a torch tensor on a device, or as a numpy array where there is no torch device.

    Floating-point arrays become float32 before they move: some devices have no float64. The copy is
    waited for: on some, one that is not reads memory that has another content by then.
    """
    if torch_device is None:
        return to_numpy(array)
    import torch

    if not is_torch(array):
        array = torch.from_numpy(np.ascontiguousarray(array))
    return (array.float() if array.is_floating_point() else array).to(torch_device)


def shown(array: Array) -> Array:
    """As Diffusers' code expects it: a torch tensor where the process has torch imported."""
    torch = sys.modules.get("torch")
    if torch is None or is_torch(array):
        return array
    return torch.from_numpy(np.ascontiguousarray(array))


def concatenate(arrays: list[Array], axis: int = 0) -> Array:
    """Along an axis, the first by default; all of one kind."""
    if is_torch(arrays[0]):
        import torch

        return torch.cat(arrays, dim=axis)
    return np.concatenate(arrays, axis=axis)


def join_features(arrays: list[Array]) -> Array:
    """Along the last axis; all of one kind."""
    if is_torch(arrays[0]):
        import torch

        return torch.cat(arrays, dim=-1)
    return np.concatenate(arrays, axis=-1)


def dot(a: Array, b: Array, axes: tuple[int, ...] | None = None) -> Array:
    """The inner product of each item of two batches, [B, …] to [B, 1, …].

    Args:
        a: A batch.
        b: Another of its shape.
        axes: The axes to sum over; all but the first by default.
    """
    axes = tuple(range(1, a.ndim)) if axes is None else axes
    if is_torch(a):
        return (a * b).sum(dim=axes, keepdim=True)
    return (a * b).sum(axis=axes, keepdims=True, dtype=np.float64).astype(a.dtype)


def mean_size(array: Array) -> float:
    """The mean of the absolute values."""
    if is_torch(array):
        return float(array.abs().mean())
    return float(np.abs(array).mean(dtype=np.float64))


def with_gain(array: Array, gain: npt.NDArray[np.floating[Any]]) -> Array:
    """An array whose last two axes are filtered: each frequency of theirs times a gain [h, w].

    The frequencies are in the order of ``numpy.fft.fftfreq``.
    """
    if is_torch(array):
        import torch

        factors = torch.from_numpy(gain).to(array.device, torch.float32)
        return torch.fft.ifft2(torch.fft.fft2(array.float()) * factors).real
    return np.fft.ifft2(np.fft.fft2(array) * gain).real


def mean_ratio(array: Array, before: Array) -> float:
    """The mean of how long the vectors along the last axis are, relative to others."""
    if is_torch(array):
        return float((array.norm(dim=-1) / (before.norm(dim=-1) + 1e-8)).mean())
    lengths = [np.linalg.norm(one, axis=-1) for one in (array, before)]
    return float((lengths[0] / (lengths[1] + 1e-8)).mean(dtype=np.float64))


def total(array: Array) -> Array:
    """The sum of all numbers; where there are tensors, a tensor on their device."""
    if is_torch(array):
        import torch

        return array.sum(dtype=torch.float32)
    with np.errstate(all="ignore"):
        return np.asarray(array).sum(dtype=np.float64)


def zeros_like(array: Array) -> Array:
    """Zeros of the same shape, kind and place."""
    if is_torch(array):
        return array.new_zeros(array.shape)
    return np.zeros_like(array)


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of a shape, of the kind, dtype and place of another array."""
    return like.new_zeros(shape) if is_torch(like) else np.zeros(shape, dtype=like.dtype)


def std(array: Array) -> Array:
    """The sample standard deviation of each item of a batch, [B, …] to [B, 1, …]."""
    axes = tuple(range(1, array.ndim))
    if is_torch(array):
        return array.std(dim=axes, keepdim=True)
    return array.std(axis=axes, keepdims=True, ddof=1)
