"""Outlines of pictures of `shapes`: what the bundled ControlNet follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["CONTROLNET", "outline"]

CONTROLNET: Path = Path(__file__).parent / "controlnet"
"""The bundled ControlNet, a folder in Diffusers' layout."""

STEP = 60
"""The least difference, of 255, between neighbours that is an edge."""


def outline(picture: Image.Image | NDArray[np.uint8]) -> Image.Image:
    """The edges of a picture, white on black, as large as the picture.

    >>> picture = np.zeros((8, 8, 3), np.uint8)
    >>> picture[2:6, 2:6] = 255
    >>> np.asarray(outline(picture))[4, :, 0].tolist()
    [0, 255, 255, 0, 0, 255, 255, 0]
    """
    colours = picture.convert("RGB") if isinstance(picture, Image.Image) else picture
    pixels = np.asarray(colours).astype(np.int16)
    near = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = (near[:-2, 1:-1], near[2:, 1:-1], near[1:-1, :-2], near[1:-1, 2:])
    change = np.max([abs(one - pixels) for one in around], axis=0).max(axis=-1)
    edges = np.where(change >= STEP, 255, 0).astype(np.uint8)
    return Image.fromarray(np.repeat(edges[..., None], 3, axis=-1))
