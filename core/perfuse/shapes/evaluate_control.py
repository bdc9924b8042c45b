"""How often the bundled ControlNet's outline is obeyed: `python -m perfuse.shapes.evaluate_control`.

The scenes are those that training never saw, each moved to a random place. The caption says the colours
alone; shape, size and place are in the outline, and only there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfuse.shapes import grammar
from perfuse.shapes.checker import check, look
from perfuse.shapes.outline import CONTROLNET, moved, outline, without_form

__all__ = ["Lesson", "faults_of", "lessons"]

NEAR = 3.0
"""The farthest in pixels, along each axis, that an object may be from its outline's middle."""

COLUMNS = 4
"""How many of the scenes a sheet shows."""

#: A complete scene and a picture of it, uint8 [64, 64, 3].
Lesson = tuple[grammar.Scene, NDArray[np.uint8]]


def lessons(count: int, *, seed: int = 0) -> Iterator[Lesson]:
    """The first held-out scenes, each with a picture whose object stands anywhere."""
    for index, scene in enumerate(grammar.held_out()[:count]):
        yield scene, moved(scene, np.random.default_rng([seed, index]))


def faults_of(drawn: NDArray[np.uint8], lesson: Lesson) -> tuple[str, ...]:
    """What of a picture, uint8 [64, 64, 3], is not as the caption and the outline say."""
    scene, shown = lesson
    item = replace(scene.objects[0], place=None)
    verdict = check(drawn, replace(scene, objects=(item,)))
    if not verdict.right:
        return verdict.faults
    middles = [look(picture)[0][0].middle for picture in (drawn, shown)]
    far = max(abs(a - b) for a, b in zip(*middles, strict=True))
    return (f"place: {far:.0f} pixels away",) if far > NEAR else ()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the ControlNet of the bundled model.")
    parser.add_argument("--controlnet", default=str(CONTROLNET), help="folder")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--scale", type=float, default=1.0, help="how much the outline counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--sheet", type=Path, help="PNG to write: outlines and what was drawn")
    options = parser.parse_args()

    from perfuse import DiffusionPipeline

    pipe: Any = DiffusionPipeline.from_pretrained(
        backend=options.backend, controlnet=options.controlnet
    )
    given = list(lessons(options.count, seed=options.seed))
    right = 0
    drawn: list[NDArray[np.uint8]] = []
    for begin in range(0, len(given), 25):
        some = given[begin : begin + 25]
        pictures = pipe(
            [without_form(scene).caption() for scene, _ in some],
            image=[outline(shown) for _, shown in some],
            controlnet_conditioning_scale=options.scale,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            seed=options.seed + begin,
        ).images
        for lesson, picture in zip(some, pictures, strict=True):
            drawn.append(np.asarray(picture.convert("RGB")))
            faults = faults_of(drawn[-1], lesson)
            right += not faults
            if faults:
                print(f"wrong  {lesson[0].caption()}  ({'; '.join(faults)})")
    print(f"{right} of {len(given)} outlines obeyed")
    if options.sheet is not None:
        _write_sheet(given[:COLUMNS], drawn[:COLUMNS], options.sheet)


def _write_sheet(given: list[Lesson], drawn: list[NDArray[np.uint8]], path: Path) -> None:
    """Outlines above the pictures drawn from them."""
    from perfuse.arrays.pictures import save_png
    from perfuse.shapes.sheet import grid

    cells = [np.asarray(outline(shown)) for _, shown in given] + drawn
    captions = [without_form(scene).caption() for scene, _ in given]
    sheet = grid(
        cells,
        len(given),
        row_captions=["outline", "drawn"],
        column_captions=captions,
        scale=2,
    )
    save_png(sheet, path)


if __name__ == "__main__":
    main()
