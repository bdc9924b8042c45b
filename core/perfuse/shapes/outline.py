"""Outlines of pictures of `shapes`: what the bundled ControlNet follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perfuse.shapes import grammar

__all__ = ["CONTROLNET", "moved", "outline", "without_form"]

CONTROLNET: Path = Path(__file__).parent / "controlnet"
"""The bundled ControlNet, a folder in Diffusers' layout."""

STEP = 25
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


REACH = {"small": 18, "large": 13}
"""How far an object is moved from the middle, in pixels along each axis: it stays in the picture."""


def moved(scene: grammar.Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of a complete scene, whose one object stands anywhere, uint8 [64, 64, 3]."""
    if scene.relation is not None:
        return grammar.draw(scene, rng)
    item = replace(scene.objects[0], place="center")
    picture = grammar.draw(replace(scene, objects=(item,)), rng)
    assert item.size is not None
    reach = REACH[item.size]
    by: tuple[int, int] = tuple(rng.integers(-reach, reach + 1, 2).tolist())
    return np.roll(picture, by, axis=(0, 1))


def without_form(scene: grammar.Scene) -> grammar.Scene:
    """What an outline does not say: the colours of a scene, and how two objects stand."""
    objects = tuple(grammar.Object(colour=item.colour) for item in scene.objects)
    return replace(scene, objects=objects)
