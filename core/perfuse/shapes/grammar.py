"""The little language of `shapes`: scenes, their captions, and how to draw them.

A caption says as much as it likes and no more::

    a small red circle at the top left on a white background
    a circle on a black background
    a red circle above a blue square

What a caption leaves out is `None` in its scene; `Scene.complete` makes it up and `draw` paints it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "PLACES",
    "RADII",
    "RELATIONS",
    "SHAPES",
    "SIDE",
    "WORDS",
    "Object",
    "Scene",
    "captions",
    "draw",
    "held_out",
    "parse",
    "sample",
    "signed_distance",
    "tell",
]

RGB = tuple[int, int, int]

SIDE = 64
"""Width and height of a picture, in pixels."""

RADII: dict[str, float] = {"small": 6.75, "large": 11.5}
"""Radius in pixels of the disc that has the object's area."""

COLOURS: dict[str, RGB] = {
    "red": (220, 35, 40),
    "orange": (248, 132, 16),
    "yellow": (250, 226, 50),
    "green": (35, 160, 60),
    "cyan": (40, 205, 220),
    "blue": (40, 75, 220),
    "purple": (150, 45, 190),
}

SHAPES = ("circle", "square", "triangle", "cross")

PLACES: dict[str, tuple[float, float]] = {
    "center": (32, 32),
    "top left": (18, 18),
    "top right": (46, 18),
    "bottom left": (18, 46),
    "bottom right": (46, 46),
}
"""Where one object stands: x to the right and y downwards, in pixels."""

BACKGROUNDS: dict[str, RGB] = {
    "white": (245, 245, 245),
    "black": (16, 16, 16),
    "gray": (128, 128, 128),
}

RELATIONS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "above": ((32.0, 15.5), (32.0, 48.5)),
    "below": ((32.0, 48.5), (32.0, 15.5)),
    "left of": ((15.5, 32.0), (48.5, 32.0)),
    "right of": ((48.5, 32.0), (15.5, 32.0)),
}
"""Where two objects stand, the one named first first."""

WORDS = tuple(
    sorted(
        {"a", "an", "at", "the", "on", "background", "shape"}
        | {*RADII, *COLOURS, *SHAPES, *BACKGROUNDS}
        | {word for phrase in (*PLACES, *RELATIONS) for word in phrase.split()}
    )
)
"""Every word of the language."""

HELD_OUT = 120
"""How many one-object scenes training never sees."""


@dataclass(frozen=True, kw_only=True)
class Object:
    """One thing in a scene; `None` is what nobody said."""

    size: str | None = None
    """A key of `RADII`."""
    colour: str | None = None
    """A key of `COLOURS`."""
    shape: str | None = None
    """One of `SHAPES`."""
    place: str | None = None
    """A key of `PLACES`; always `None` in a scene of two objects."""

    def phrase(self) -> str:
        """The words for it, article included: "a small red circle"."""
        words = [self.size, self.colour, self.shape if self.shape is not None else "shape"]
        named = " ".join(word for word in words if word is not None)
        return f"{'an' if named[0] in 'aeiou' else 'a'} {named}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two objects on a plain background."""

    objects: tuple[Object, ...]
    """The objects, in the order in which the caption names them."""
    relation: str | None = None
    """A key of `RELATIONS`: how the first of two objects stands to the second."""
    background: str | None = None
    """A key of `BACKGROUNDS`."""

    def caption(self) -> str:
        """What the scene says of itself, and nothing that is `None`.

        >>> Scene(objects=(Object(size="small", colour="red", shape="circle"),)).caption()
        'a small red circle'
        """
        first = self.objects[0]
        parts = [first.phrase()]
        if self.relation is not None:
            parts += [self.relation, self.objects[1].phrase()]
        elif first.place is not None:
            parts += ["at the", first.place]
        if self.background is not None:
            parts += ["on a", self.background, "background"]
        return " ".join(parts)

    def complete(self, rng: np.random.Generator) -> Scene:
        """The same scene with everything unsaid made up; two objects never share a colour."""
        taken = {item.colour for item in self.objects}
        objects = []
        for item in self.objects:
            colour = item.colour
            if colour is None:
                colour = _pick(rng, [name for name in COLOURS if name not in taken])
                taken.add(colour)
            alone = self.relation is None
            objects.append(
                Object(
                    size=item.size if item.size is not None else _pick(rng, RADII),
                    colour=colour,
                    shape=item.shape if item.shape is not None else _pick(rng, SHAPES),
                    place=item.place if item.place is not None or not alone else _pick(rng, PLACES),
                )
            )
        background = self.background if self.background is not None else _pick(rng, BACKGROUNDS)
        return replace(self, objects=tuple(objects), background=background)


def _pick(rng: np.random.Generator, names: object) -> str:
    choices: list[str] = list(names)  # type: ignore[call-overload]
    return choices[int(rng.integers(len(choices)))]


def _one_of(names: object) -> str:
    return "|".join(names)  # type: ignore[arg-type]


_OBJECT = rf"an?(?: ({_one_of(RADII)}))?(?: ({_one_of(COLOURS)}))? ({_one_of(SHAPES)}|shape)"
_CAPTION = re.compile(
    rf"{_OBJECT}(?: at the ({_one_of(PLACES)})| ({_one_of(RELATIONS)}) {_OBJECT})?"
    rf"(?: on an? ({_one_of(BACKGROUNDS)}) background)?"
)


def parse(caption: str) -> Scene:
    """The scene that a caption describes; a `ValueError` if it is not of the language.

    >>> parse("a red circle above a blue square").relation
    'above'
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()))
    if match is None:
        raise ValueError(
            f"Cannot read the caption {caption!r}. Write it like 'a small red circle at the top left "
            "on a white background' or 'a red circle above a blue square'."
        )
    size, colour, shape, place, relation, size2, colour2, shape2, background = match.groups()

    def item(size: str | None, colour: str | None, shape: str, place: str | None) -> Object:
        return Object(
            size=size, colour=colour, shape=None if shape == "shape" else shape, place=place
        )

    objects = [item(size, colour, shape, place)]
    if relation is not None:
        objects.append(item(size2, colour2, shape2, None))
    return Scene(objects=tuple(objects), relation=relation, background=background)


def _full() -> list[Scene]:
    """Every one-object scene that leaves nothing out, in a fixed order."""
    return [
        Scene(objects=(Object(size=z, colour=c, shape=s, place=p),), background=b)
        for z, c, s, p, b in itertools.product(RADII, COLOURS, SHAPES, PLACES, BACKGROUNDS)
    ]


@cache
def held_out() -> tuple[Scene, ...]:
    """The one-object scenes that training never draws and never names, in a fixed order."""
    scenes = _full()
    order = np.random.Generator(np.random.PCG64(20)).permutation(len(scenes))
    return tuple(scenes[i] for i in order[:HELD_OUT])


def captions() -> Iterator[str]:
    """Every caption of one object, from "a shape" to the full ones."""
    spaces = (
        [None, *RADII],
        [None, *COLOURS],
        [None, *SHAPES],
        [None, *PLACES],
        [None, *BACKGROUNDS],
    )
    for z, c, s, p, b in itertools.product(*spaces):
        yield Scene(objects=(Object(size=z, colour=c, shape=s, place=p),), background=b).caption()


def sample(rng: np.random.Generator, *, pairs: float = 0.0) -> Scene:
    """A random training scene, complete; never one of `held_out`.

    `pairs` is the share of scenes with two objects.
    """
    if rng.random() < pairs:
        return Scene(objects=(Object(), Object()), relation=_pick(rng, RELATIONS)).complete(rng)
    while True:
        scene = Scene(objects=(Object(),)).complete(rng)
        if scene not in _held_out_set():
            return scene


def tell(scene: Scene, rng: np.random.Generator) -> Scene:
    """A complete scene as a training caption tells it: all of it half of the time, or with gaps."""
    if scene.relation is None and rng.random() < 0.5:
        return scene
    chances = (0.5, 0.7, 0.8, 0.5, 0.5) if scene.relation is None else (0.15, 0.95, 0.95, 0, 0.5)
    size, colour, shape, place, background = rng.random(5) < chances
    objects = tuple(
        Object(
            size=item.size if size else None,
            colour=item.colour if colour else None,
            shape=item.shape if shape else None,
            place=item.place if place else None,
        )
        for item in scene.objects
    )
    return replace(scene, objects=objects, background=scene.background if background else None)


@cache
def _held_out_set() -> frozenset[Scene]:
    return frozenset(held_out())


def signed_distance(
    shape: str, x: NDArray[np.float64], y: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Distance in pixels of the points (x, y) to a shape's edge, negative inside.

    The shape's bounding box is centred on the origin and its area is that of a disc of `radius`.
    """
    area = math.pi * radius**2
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - math.sqrt(area) / 2
    if shape == "triangle":
        side = math.sqrt(4 * area / math.sqrt(3))
        height = side * math.sqrt(3) / 2
        slope = abs(x) * math.sqrt(3) / 2 - (y + height / 2) / 2
        return np.maximum(y - height / 2, slope)
    if shape == "cross":
        arm = math.sqrt(area * 9 / 5) / 2
        across = np.maximum(abs(x) - arm, abs(y) - arm / 3)
        return np.minimum(across, np.maximum(abs(x) - arm / 3, abs(y) - arm))
    raise ValueError(f"No shape is called {shape!r}. There are: {', '.join(SHAPES)}.")


def draw(scene: Scene, rng: np.random.Generator, *, wander: float = 0.5) -> NDArray[np.uint8]:
    """Paint a scene, uint8 [64, 64, 3]: antialiased, everything slightly off its nominal value.

    `wander` is how far an object may be from its place, in pixels along each axis; its radius differs by
    up to a third of that. What the scene leaves unsaid is made up; the same scene and the same state of `rng` give the same
    picture.
    """
    scene = scene.complete(rng)
    assert scene.background is not None
    picture = np.empty((SIDE, SIDE, 3))
    picture[:] = np.asarray(BACKGROUNDS[scene.background]) + rng.uniform(-5, 5)
    axis = np.arange(SIDE) + 0.5
    for index, item in enumerate(scene.objects):
        assert item.size is not None and item.colour is not None and item.shape is not None
        if scene.relation is not None:
            nominal = RELATIONS[scene.relation][index]
        else:
            assert item.place is not None
            nominal = PLACES[item.place]
        middle = np.asarray(nominal) + rng.uniform(-wander, wander, 2)
        radius = RADII[item.size] + rng.uniform(-wander, wander) / 3
        colour = np.asarray(COLOURS[item.colour]) + rng.uniform(-6, 6, 3)
        distance = signed_distance(
            item.shape, axis[None] - middle[0], axis[:, None] - middle[1], radius
        )
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        picture += cover * (colour - picture)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
