"""Score a model on captions that training never saw: `python -m perfuse.shapes.evaluate`."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from perfuse.shapes import BUNDLED, bundled_name, grammar
from perfuse.shapes.checker import Verdict, check

__all__ = ["judge"]

BATCH = 25
"""Pictures drawn at a time; the noise of a picture depends on its place in the batch."""


def judge(
    paint: Callable[[list[str], int], Sequence[Image.Image]],
    scenes: Sequence[grammar.Scene],
    *,
    seed: int = 0,
) -> Iterator[tuple[grammar.Scene, Image.Image, Verdict]]:
    """Have `paint` draw each scene's caption and check the picture.

    `paint` takes captions and a seed and returns a 64×64 picture a caption.
    """
    for begin in range(0, len(scenes), BATCH):
        some = scenes[begin : begin + BATCH]
        pictures = paint([scene.caption() for scene in some], seed + begin)
        for scene, picture in zip(some, pictures, strict=True):
            yield scene, picture, check(np.asarray(picture.convert("RGB")), scene)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a model on the held-out captions.")
    parser.add_argument(
        "--model", default="shapes", help="a bundled model's name, or a folder (default: shapes)"
    )
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--steps", type=int, help="default: 20, and 12 for shapes-flow")
    parser.add_argument("--guidance", type=float, help="default: 3")
    parser.add_argument("--negative-prompt", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="how many of the held-out captions")
    options = parser.parse_args()
    named = BUNDLED[bundled_name(options.model) or "shapes"]
    settings = named.call(options.steps, options.guidance)

    from perfuse import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(options.model, backend=options.backend)

    def paint(captions: list[str], seed: int) -> Sequence[Image.Image]:
        negative = options.negative_prompt
        images: Sequence[Image.Image] = pipe(
            captions,
            negative_prompt=[negative] * len(captions) if negative is not None else None,
            **settings,
            seed=seed,
        ).images
        return images

    began = time.monotonic()
    faults: Counter[str] = Counter()
    right = count = 0
    for scene, _, verdict in judge(paint, grammar.held_out()[: options.count], seed=options.seed):
        count += 1
        right += verdict.right
        faults.update(fault.split(":")[0] for fault in verdict.faults)
        if not verdict.right:
            print(f"wrong  {scene.caption()}  ({'; '.join(verdict.faults)})")
    told = ", ".join(f"{name} {number}" for name, number in faults.most_common()) or "none"
    print(f"{right} of {count} right  (faults: {told}; {time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
