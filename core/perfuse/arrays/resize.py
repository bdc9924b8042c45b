"""Resizing of arrays as PyTorch does it, with numpy."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["bicubic"]

_A = np.float32(-0.75)  # PyTorch's; Keys 1981 has -0.5


def bicubic(array: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize [..., H, W] as ``interpolate(mode="bicubic")``: no antialiasing, corners not aligned.

    >>> bicubic(np.float32([[0, 1], [2, 3]]), 2, 2).tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    rows, columns = _weights(array.shape[-2], height), _weights(array.shape[-1], width)
    resized: NDArray[np.float32] = rows @ array.astype(np.float32) @ columns.T
    return resized


def _weights(found: int, asked: int) -> NDArray[np.float32]:
    """The matrix [asked, found] of cubic convolution along one axis (Keys 1981)."""
    scale = np.float32(found) / np.float32(asked)
    at = scale * (np.arange(asked, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    first = np.floor(at)
    t = at - first
    near = [((_A + 2) * x - (_A + 3)) * x * x + 1 for x in (t, 1 - t)]
    far = [((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A for x in (t + 1, 2 - t)]
    matrix = np.zeros((asked, found), dtype=np.float32)
    each = np.arange(asked)
    for offset, weight in zip((-1, 0, 1, 2), (far[0], near[0], near[1], far[1]), strict=True):
        # The picture's edge goes on for ever.
        np.add.at(matrix, (each, np.clip(first.astype(int) + offset, 0, found - 1)), weight)
    return matrix
