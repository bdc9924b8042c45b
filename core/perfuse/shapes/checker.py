"""Does a picture show what a scene says? Rules on pixels, nothing learned.

The picture is split by colour into a background and things; each thing is then compared with the
four shapes, drawn at its own size and in its own place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse.shapes.grammar import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RADII,
    RELATIONS,
    RGB,
    SHAPES,
    SIDE,
    Object,
    Scene,
    signed_distance,
)

__all__ = ["Finding", "Verdict", "check", "look"]

NEAR_COLOUR = 50.0
"""The farthest in RGB that a colour may be from the one it is named after."""
APART = 55.0
"""The least distance in RGB between the background and a pixel of a thing."""
SPECK = 16
"""Things of fewer pixels are noise."""
NEAR_SIZE = 0.2
"""The farthest, relative to it, that a radius may be from the one it is named after."""
NEAR_PLACE = 6.0
"""The farthest in pixels, along each axis, that an object may be from its place."""
LIKENESS = 0.8
"""The least intersection over union of a thing with the shape it is taken for."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing in a picture; `None` where no word fits."""

    size: str | None
    """A key of `grammar.RADII`."""
    colour: str | None
    """A key of `grammar.COLOURS`."""
    shape: str | None
    """One of `grammar.SHAPES`."""
    middle: tuple[float, float]
    """x and y of the middle of its bounding box, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found, and what of it is wrong."""

    objects: tuple[Finding, ...]
    """The things found, largest first."""
    background: str | None
    """A key of `grammar.BACKGROUNDS`."""
    faults: tuple[str, ...]
    """A line for everything that is not as the scene says; empty if the picture is right."""

    @property
    def right(self) -> bool:
        return not self.faults


def check(picture: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare a picture, uint8 [64, 64, 3], with a scene.

    What the scene leaves unsaid may be anything that the language has a word for.
    """
    objects, background = look(picture)
    faults = []
    if background is None or scene.background not in (None, background):
        faults.append(f"background: {background}, not {scene.background or 'any that has a name'}")
    if len(objects) != len(scene.objects):
        faults.append(f"objects: {len(objects)}, not {len(scene.objects)}")
    elif scene.relation is None:
        place = scene.objects[0].place
        faults += _compare(
            objects[0], scene.objects[0], PLACES[place] if place is not None else None
        )
    else:
        homes = RELATIONS[scene.relation]
        straight = _compare_two(objects, scene.objects, homes)
        crossed = _compare_two(objects[::-1], scene.objects, homes)
        faults += straight if len(straight) <= len(crossed) else crossed
    return Verdict(objects=objects, background=background, faults=tuple(faults))


def _compare(found: Finding, said: Object, home: tuple[float, float] | None) -> list[str]:
    """What of a finding is not as said."""
    faults = [
        f"{word}: {is_}, not {should or 'any that has a name'}"
        for word, is_, should in (
            ("size", found.size, said.size),
            ("colour", found.colour, said.colour),
            ("shape", found.shape, said.shape),
        )
        if is_ is None or should not in (None, is_)
    ]
    if home is not None:
        x, y = (abs(a - b) for a, b in zip(found.middle, home, strict=True))
        if max(x, y) > NEAR_PLACE:
            faults.append(
                "place: ({:.0f}, {:.0f}), not ({:.0f}, {:.0f})".format(*found.middle, *home)
            )
    return faults


def _compare_two(
    found: tuple[Finding, ...],
    said: tuple[Object, ...],
    homes: tuple[tuple[float, float], ...],
) -> list[str]:
    return [fault for each in zip(found, said, homes, strict=True) for fault in _compare(*each)]


def look(picture: NDArray[np.uint8]) -> tuple[tuple[Finding, ...], str | None]:
    """The things in a picture, uint8 [64, 64, 3], largest first, and the name of its background."""
    if picture.shape != (SIDE, SIDE, 3) or picture.dtype != np.uint8:
        raise ValueError(
            f"A picture is uint8 [{SIDE}, {SIDE}, 3]; this is {picture.dtype} {list(picture.shape)}."
        )
    pixels = picture.astype(np.float64)
    frame = np.ones((SIDE, SIDE), dtype=bool)
    frame[2:-2, 2:-2] = False
    ground: NDArray[np.float64] = np.median(pixels[frame], axis=0)
    things = []
    for part in _parts(np.linalg.norm(pixels - ground, axis=-1) > APART):
        if part.sum() >= SPECK:
            things.append(_describe(pixels - ground, ground, part))
    things.sort(key=lambda thing: -thing[0])
    return tuple(finding for _, finding in things), _name(ground, BACKGROUNDS)


def _parts(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The parts of a mask that hang together, edge to edge."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        near = np.pad(labels, 1)
        around = (near[:-2, 1:-1], near[2:, 1:-1], near[1:-1, :-2], near[1:-1, 2:], labels)
        spread = np.where(mask, np.max(around, axis=0), 0)
        if np.array_equal(spread, labels):
            return [labels == label for label in np.unique(labels) if label]
        labels = spread


def _describe(
    contrast: NDArray[np.float64], ground: NDArray[np.float64], part: NDArray[np.bool_]
) -> tuple[float, Finding]:
    """The area in pixels and the description of one thing.

    `contrast` is the picture less its background: [64, 64, 3].
    """
    strength = np.linalg.norm(contrast, axis=-1)
    core = part & (strength >= np.median(strength[part]))
    colour: NDArray[np.float64] = np.median(contrast[core], axis=0)
    # A pixel at the edge is a mixture; its share is its projection on the colour of the thing.
    cover = np.clip(contrast @ colour / (colour @ colour), 0, 1)
    wide = np.pad(part, 1)
    reach = part | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    cover = np.where(reach, cover, 0)
    area = float(cover.sum())
    axis: NDArray[np.float64] = np.arange(SIDE, dtype=np.float64) + 0.5
    x, y = float((cover * axis[None]).sum() / area), float((cover * axis[:, None]).sum() / area)
    radius = math.sqrt(area / math.pi)
    best, likeness, middle = None, LIKENESS, (x, y)
    for shape in SHAPES:
        lift = (
            radius * math.sqrt(math.pi / math.sqrt(3)) / 6 * math.sqrt(3)
            if shape == "triangle"
            else 0
        )
        distance = signed_distance(shape, axis[None] - x, axis[:, None] - (y - lift), radius)
        ideal = np.clip(0.5 - distance, 0, 1)
        overlap = float(np.minimum(ideal, cover).sum() / np.maximum(ideal, cover).sum())
        if overlap > likeness:
            best, likeness, middle = shape, overlap, (x, y - lift)
    size = min(RADII, key=lambda name: abs(RADII[name] - radius))
    finding = Finding(
        size=size if abs(radius / RADII[size] - 1) <= NEAR_SIZE else None,
        colour=_name(ground + colour, COLOURS),
        shape=best,
        middle=middle,
    )
    return area, finding


def _name(colour: NDArray[np.float64], palette: Mapping[str, RGB]) -> str | None:
    """The name of the nearest colour, if it is near enough."""
    far = {name: float(np.linalg.norm(colour - np.asarray(rgb))) for name, rgb in palette.items()}
    name = min(far, key=far.__getitem__)
    return name if far[name] <= NEAR_COLOUR else None
