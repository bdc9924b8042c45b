"""Resizing arrays as PyTorch does, without it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["bicubic"]

_SHARPNESS = -0.75  # Keys' parameter, as in PyTorch and OpenCV; Pillow has -0.5


def bicubic(x: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize [B, C, H, W] as ``torch.nn.functional.interpolate(mode="bicubic")`` (Keys 1981)."""
    rows, columns = _weights(x.shape[2], height), _weights(x.shape[3], width)
    resized: NDArray[np.float32] = np.einsum("hH,bcHW,wW->bchw", rows, x, columns, optimize=True)
    return resized.astype(np.float32)


def _weights(found: int, asked: int) -> NDArray[Any]:
    """The share of each of ``found`` pixels in each of ``asked``: [asked, found]."""
    at = (np.arange(asked) + 0.5) * (found / asked) - 0.5
    first = np.floor(at).astype(np.intp)
    weights = np.zeros((asked, found))
    for offset in (-1, 0, 1, 2):
        pixel = first + offset
        share = _kernel(np.abs(at - pixel))
        np.add.at(weights, (np.arange(asked), pixel.clip(0, found - 1)), share)
    return weights


def _kernel(distance: NDArray[Any]) -> NDArray[Any]:
    a, d = _SHARPNESS, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
