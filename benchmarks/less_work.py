"""Denoising loops that leave work out, beside the whole one: SD-1.5-sized and one transformer, 512².

The denoising alone, without text and decoding, in processor time: other programs may run beside it.
30 steps, guidance on.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
from overhead import PROMPT
from sidebyside import Row, command, compare, in_turns, say

_FORMATS = ("torch:cpu", "onnxruntime:cpu", "openvino:CPU")


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model, and how much of the whole loop's time is promised to be enough, by transform."""

    #: What its rows say of it: nothing for the one that is SD-1.5-sized.
    name: str
    make: Callable[..., Path]
    ways: Mapping[str, float | None]


_MODELS = (
    _Model(
        name="",
        make=models.sd15,
        ways={
            "deepcache:every=3": 1 / 2.0,
            "guidance-interval:start=0,stop=0.5": 1 / 1.3,
            "easycache:threshold=0.1": None,
            "taylorseer:interval=2": None,
        },
    ),
    _Model(
        name="a transformer of 6 blocks, ",
        make=models.transformer,
        # What they leave out depends on the weights, which are random here. So: two steps of three
        # after the first six, all but the first, and none.
        ways={
            "magcache:ratios=1+1,most=2": None,
            "first-block:threshold=1e9": None,
            "first-block:threshold=1e-9": None,
        },
    ),
)


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--engines", default=",".join(_FORMATS), help="some of %(default)s")


def measure(options: Namespace) -> list[Row]:
    steps, rounds = (6, 1) if options.quick else (30, options.rounds or 3)
    return [
        row
        for model in _MODELS
        for engine in options.engines.split(",")
        for row in _ways(
            model, engine, model.make(options.work, quick=options.quick), steps, rounds
        )
    ]


def _ways(model: _Model, engine: str, checkpoint: Path, steps: int, rounds: int) -> list[Row]:
    from perfuse import DiffusionPipeline

    whole = DiffusionPipeline.from_pretrained(checkpoint, backend=engine)
    plain = _loop(whole, steps)
    plain()
    rows = []
    for way, target in model.ways.items():
        say(f"{model.name}{way}, {engine}")
        pipe = DiffusionPipeline.from_pipe(whole)  # shares what the transforms leave as it is
        pipe.add_transform(way)
        other = _loop(pipe, steps)
        other()
        found = in_turns(rounds, {"other": other, "plain": plain})
        what = f"A denoising loop of {steps} steps, {model.name}{way}, {engine}"
        row = compare(
            what, found["other"], found["plain"], unit="s", against="all of it", target=target
        )
        rows.append(row)
    return rows


def _loop(pipe: Any, steps: int) -> Callable[[], float]:
    def run() -> float:
        began = spent = 0.0
        for event in pipe.stream(PROMPT, num_inference_steps=steps, seed=0, output_type="latent"):
            if event.step == "place_inputs":
                began = time.process_time()
            elif event.step == "denoise":
                spent = time.process_time() - began
        return spent

    return run


if __name__ == "__main__":
    command(measure, __doc__, options)
