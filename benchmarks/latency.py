"""The three engines beside each other: a denoising step, and a whole picture, of the bundled model."""

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import models
from overhead import FORMATS, PROMPT
from sidebyside import Row, command, compare, in_turns, say

STEPS = 20


def measure(options: Namespace) -> list[Row]:
    from perfuse import ArtifactStore, DiffusionPipeline

    rounds = options.rounds or (5 if options.quick else 30)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        pipes = {
            engine: DiffusionPipeline.from_pretrained(
                models.shapes(options.model), backend=engine, store=ArtifactStore(Path(folder))
            )
            for engine in FORMATS
        }
        return _measure(pipes, rounds)


def _measure(pipes: Mapping[str, Any], rounds: int) -> list[Row]:
    steps: dict[str, list[float]] = {engine: [] for engine in pipes}
    for engine, pipe in pipes.items():
        _draw(pipe)
        steps[engine].clear()
    say(f"{', '.join(pipes)}, {rounds} rounds")

    def side(engine: str) -> Callable[[], float]:
        def draw() -> float:
            whole, step = _draw(pipes[engine])
            steps[engine].append(step)
            return whole

        return draw

    whole = in_turns(rounds, {engine: side(engine) for engine in pipes})
    rows = []
    for what, found in (("A step", steps), (f"A picture in {STEPS} steps", whole)):
        for engine in list(FORMATS)[1:]:
            rows.append(
                compare(
                    f"{what}, `shapes` on {engine}",
                    found[engine],
                    found["torch"],
                    unit="ms",
                    against="on torch",
                )
            )
    return rows


def _draw(pipe: Any) -> tuple[float, float]:
    """The seconds of a picture, and of one of its steps, which is two predictions at a time."""
    began = time.perf_counter()
    first = last = began
    for event in pipe.stream(PROMPT, num_inference_steps=STEPS, seed=0):
        if event.step == "place":
            first = time.perf_counter()
        elif event.step == "denoise":
            last = time.perf_counter()
    return time.perf_counter() - began, (last - first) / STEPS


if __name__ == "__main__":
    command(measure, __doc__)
