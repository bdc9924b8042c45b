"""Denoising loops that leave work out, beside the whole one: SD-1.5-sized, 512², 30 steps, guidance on.

The denoising alone, without text and decoding, in processor time: other programs may run beside it.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import models
from overhead import PROMPT
from sidebyside import Row, command, compare, in_turns, say

_FORMATS = {"torch:cpu": None, "onnxruntime:cpu": "onnx", "openvino:CPU": "openvino"}
#: How much of the whole loop's time is promised to be enough.
_WAYS = {
    "deepcache:every=3": 1 / 2.0,
    "guidance-interval:start=0,stop=0.5": 1 / 1.3,
    "easycache:threshold=0.1": None,
    "taylorseer:interval=2": None,
}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--engines", default=",".join(_FORMATS), help="some of %(default)s")


def measure(options: Namespace) -> list[Row]:
    checkpoint = models.sd15(options.work, quick=options.quick)
    steps, rounds = (6, 1) if options.quick else (30, options.rounds or 3)
    return [
        row
        for engine in options.engines.split(",")
        for row in _ways(engine, checkpoint, steps, rounds)
    ]


def _ways(engine: str, checkpoint: Any, steps: int, rounds: int) -> list[Row]:
    from perfuse import DiffusionPipeline

    whole = DiffusionPipeline.from_pretrained(checkpoint, backend=engine)

    def loop(*transforms: str) -> Callable[[], float]:
        pipe = DiffusionPipeline.from_pipe(whole)  # shares what the transforms leave as it is
        for text in transforms:
            pipe.add_transform(text)

        def run() -> float:
            began = spent = 0.0
            for event in pipe.stream(
                PROMPT, num_inference_steps=steps, seed=0, output_type="latent"
            ):
                if event.step == "place_inputs":
                    began = time.process_time()
                elif event.step == "denoise":
                    spent = time.process_time() - began
            return spent

        return run

    plain = loop()
    plain()
    rows = []
    for way, target in _WAYS.items():
        say(f"{way}, {engine}")
        other = loop(way)
        other()
        found = in_turns(rounds, {"other": other, "plain": plain})
        rows.append(
            compare(
                f"A denoising loop of {steps} steps, {way}, {engine}",
                found["other"],
                found["plain"],
                unit="s",
                against="all of it",
                target=target,
            )
        )
    return rows


if __name__ == "__main__":
    command(measure, __doc__, options)
