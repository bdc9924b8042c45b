"""What the host adds to a denoising step: perfuse's loop beside the same number of raw engine calls.

The raw calls are those that the loop has just made, made again with the same inputs on the same
session, request or module. Two figures: the loop over the raw calls, timed in turns; and the part of
the loop's own time that was not spent in the engine. On a step of seconds the first is mostly noise,
and the second is the figure.
"""

import gc
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import models
from engines import Watch, watching
from sidebyside import Row, command, compare, in_turns, say

FORMATS = {"torch": None, "onnxruntime": "onnx", "openvino": "openvino"}
PROMPT = "a small red circle at the top left on a white background"


def measure(options: Namespace) -> list[Row]:
    from perfuse import ArtifactStore, DiffusionPipeline

    rows = []
    rounds = options.rounds or (5 if options.quick else 40)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for engine in FORMATS:
            pipe = DiffusionPipeline.from_pretrained(
                models.shapes(options.model), backend=engine, store=ArtifactStore(Path(folder))
            )
            rows += _overhead("`shapes`", pipe, engine, rounds, 20, 3.0)
    large = models.sd15(options.work, quick=options.quick)
    name = "the middle model" if options.quick else "an SD 1.5-sized model"
    for engine, to in FORMATS.items():
        model = large if to is None else models.exported(large, to, options.work)
        # A compiled model of this size is not worth keeping.
        keep = {"cache": "false"} if engine == "openvino" else {}
        pipe = DiffusionPipeline.from_pretrained(model, backend=engine, options=keep)
        rows += _overhead(name, pipe, engine, 2 if options.quick else 3, 2, 0.5)
    return rows


def _overhead(
    name: str, pipe: Any, engine: str, rounds: int, steps: int, target: float
) -> list[Row]:
    say(f"{name} on {engine}")
    gc.collect()  # the models of the engine before
    with watching(engine) as watch:
        shares: list[float] = []

        def loop() -> float:
            took = _loop(pipe, steps, watch)
            shares.append((took - watch.seconds) / watch.seconds)
            return took / steps

        loop()  # prepares the components, and gives the engine's call to replay
        shares.clear()
        replay = watch.replay
        assert replay is not None and watch.calls == steps

        def raw() -> float:
            with _quiet_torch(engine):
                began = time.perf_counter()
                for _ in range(steps):
                    replay()
                return (time.perf_counter() - began) / steps

        found = in_turns(rounds, {"loop": loop, "raw": raw})
    share = 100 * statistics.median(shares)
    ratio = compare(
        f"A step, {name} on {engine}",
        found["loop"],
        found["raw"],
        unit="ms",
        against="raw engine call",
    )
    inside = Row(
        what=f"Host's part of a step, {name} on {engine}",
        ours=ratio.ours * share / (100 + share),
        unit="ms",
        against="time in the engine",
        figure=share,
        figure_unit="%",
        target=target,
    )
    return [ratio, inside]


def _quiet_torch(engine: str) -> Any:
    if engine != "torch":
        return nullcontext()
    import torch

    return torch.inference_mode()


def _loop(pipe: Any, steps: int, watch: Watch) -> float:
    """The seconds from the first step's begin to the last one's end."""
    began = 0.0
    for step, at in _events(pipe, steps):
        if step == "place":
            watch.forget()
            began = time.perf_counter()
        elif step == "denoise":
            ended = at
    return ended - began


def _events(pipe: Any, steps: int) -> Iterator[tuple[str, float]]:
    """The events up to the last denoising step, each with the time when it came."""
    for event in pipe.stream(PROMPT, num_inference_steps=steps, seed=0, output_type="latent"):
        at = time.perf_counter()
        yield event.step, at
        if event.step == "denoise" and event.done == event.total:
            return


if __name__ == "__main__":
    command(measure, __doc__)
