"""The reference path beside Diffusers: torch on the CPU, float32, one checkpoint, one process."""

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
from overhead import PROMPT
from sidebyside import Row, command, compare, in_turns, say


def measure(options: Namespace) -> list[Row]:
    rounds = options.rounds
    shapes, middle = models.shapes(options.model), models.middle(options.work)
    rows = _pictures("`shapes`", shapes, rounds or (3 if options.quick else 25), 20)
    rows += _pictures("a UNet of 92 M", middle, rounds or (2 if options.quick else 9), 4)
    return rows


def _pictures(name: str, checkpoint: Path, rounds: int, steps: int) -> list[Row]:
    import diffusers
    import torch
    import transformers

    from perfuse import DiffusionPipeline

    ours = DiffusionPipeline.from_pretrained(checkpoint, backend="torch:cpu")
    last = DiffusionPipeline.from_pretrained(
        checkpoint, backend="torch:cpu", options={"channels_last": "true"}
    )
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        checkpoint, safety_checker=None, requires_safety_checker=False, low_cpu_mem_usage=False
    )
    theirs.set_progress_bar_config(disable=True)

    def draw(pipe: Any) -> Any:
        return pipe(
            PROMPT,
            num_inference_steps=steps,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="np",
        ).images

    pictures: dict[str, Any] = {}

    def side(key: str, pipe: Any) -> Callable[[], None]:
        def run() -> None:
            pictures[key] = draw(pipe)

        return run

    sides = {"ours": side("ours", ours), "theirs": side("theirs", theirs)}
    sides["last"] = side("last", last)
    in_turns(1, sides)
    say(f"{name}, {rounds} rounds")
    found = in_turns(rounds, sides)
    difference = 255 * np.abs(pictures["ours"] - pictures["theirs"]).max()
    if difference > 1:
        sys.exit(f"The two pictures differ by {difference} of 255: they are not the same work.")
    what = f"A picture, {name} on torch, {steps} steps"
    return [
        compare(
            what,
            found["ours"],
            found["theirs"],
            unit="ms",
            against="Diffusers",
            target=1.0,
            note=f"The two pictures differ by at most {difference:.1g} of 255.",
        ),
        compare(
            f"{what}, channels_last", found["last"], found["ours"], unit="ms", against="without"
        ),
    ]


if __name__ == "__main__":
    command(measure, __doc__)
