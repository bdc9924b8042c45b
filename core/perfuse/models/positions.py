"""Positions and tables of them, which the host computes from a call's sizes: numpy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["HIDDEN", "grid", "rotary_axes", "rotary_table", "sincos_2d"]

Array = Any

#: Added to the logits of what may not be attended to; float16 holds it, and its exponential is 0.
HIDDEN = np.float32(-10000.0)


def grid(height: int, width: int, *leading: int) -> Array:
    """The row and column of each of height · width tokens, float64 [N, 2], row by row.

    Numbers in ``leading`` come before them, the same for all: Flux has one, 0 for the picture.
    """
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    axes = [np.full(height * width, number) for number in leading]
    return np.stack([*axes, rows.ravel(), columns.ravel()], axis=1).astype(np.float64)


def rotary_table(positions: Array, width: int, theta: float = 10000.0) -> Array:
    """Cosines and sines of one position a token: [N] to float32 [2, N, width / 2].

    The angles are in float64, as Diffusers has them for transformers of pictures.
    """
    frequencies = 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    angles = np.asarray(positions, dtype=np.float64)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotary_axes(positions: Array, widths: Sequence[int], theta: float = 10000.0) -> Array:
    """Several positions a token, each for its share of the channels: [N, A] to [2, N, sum / 2]."""
    tables = [rotary_table(positions[:, i], width, theta) for i, width in enumerate(widths)]
    return np.concatenate(tables, axis=-1)


def sincos_2d(
    width: int, size: tuple[int, int], *, base: int, interpolation_scale: float = 1.0
) -> Array:
    """Sinusoids of the places of a picture's tokens, float32 [1, h · w, width], row by row.

    Half of the channels are of columns, half of rows (Dosovitskiy et al. 2021 in two dimensions, as
    DiT has them). Places are stretched such that a side is ``base / interpolation_scale`` long.

    Args:
        width: Channels.
        size: Height and width in tokens.
        base: Tokens of a side in training.
        interpolation_scale: How much larger the pictures are than those of the first training.
    """
    rows, columns = (
        np.arange(n, dtype=np.float32) / np.float32(n / base) / np.float32(interpolation_scale)
        for n in size
    )
    y, x = np.meshgrid(rows, columns, indexing="ij")
    frequencies = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
    angles = [place.reshape(-1, 1).astype(np.float64) * frequencies for place in (x, y)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)[None]
