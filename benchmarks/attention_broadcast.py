"""A step whose attentions are taken from another step (PAB), on each engine: what that saves.

PixArt-Σ's blocks at their real width, two of them, with random weights; over 1,024 tokens, as at 512², and
4,096, as at 1024². Batch 2, as with guidance, 120 tokens of text; processor time, taken in turns in one
process. What is kept comes out of one program and goes into another, and that is part of the time.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from typing import Any

import models
import numpy as np
from sidebyside import Row, command, compare, in_turns, say

_ENGINES = ("torch:cpu", "onnxruntime:cpu", "openvino:CPU")
#: The sides of the latents, by their tokens.
_SIDES = {1024: 64, 4096: 128}
#: What is compared to a step of the plain transformer, and the program that runs it.
_WAYS = {
    "gives what its attentions give": "transformer",
    "takes what cross-attention gave": "transformer_without_cross",
    "takes what both attentions gave": "transformer_without_spatial_cross",
}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--engines", default=",".join(_ENGINES), help="some of %(default)s")
    parser.add_argument("--tokens", default=",".join(map(str, _SIDES)), help="some of %(default)s")


def measure(options: Namespace) -> list[Row]:
    from perfuse import DiffusionPipeline

    rounds = 1 if options.quick else (options.rounds or 5)
    checkpoint = models.pixart(options.work, quick=options.quick)
    rows = []
    for engine in options.engines.split(","):
        plain = DiffusionPipeline.from_pretrained(checkpoint, backend=engine)
        pab = ["pab:spatial=2,cross=4"]
        pipe = DiffusionPipeline.from_pretrained(checkpoint, backend=engine, transforms=pab)
        for tokens in map(int, options.tokens.split(",")):
            side = _SIDES[tokens]
            say(f"{tokens} tokens, {engine}")
            sides = {"plain": _timed(plain.program("transformer"), side)}
            sides |= {way: _timed(pipe.program(name), side) for way, name in _WAYS.items()}
            for run in sides.values():
                run()
            found = in_turns(rounds, sides)
            rows += [
                compare(
                    f"A step over {tokens} tokens that {way}, {engine}",
                    found[way],
                    found["plain"],
                    unit="ms",
                    against="the plain one",
                )
                for way in _WAYS
            ]
        pipe.close()
        plain.close()
    return rows


def _timed(program: Any, side: int) -> Callable[[], float]:
    """The processor time of a call."""
    inputs = _inputs(program.signature, side)

    def run() -> float:
        began = time.process_time()
        program(**inputs)
        return time.process_time() - began

    return run


def _inputs(signature: Any, side: int) -> Mapping[str, Any]:
    random = np.random.default_rng(0)
    sizes = {"batch": 2, "latent_height": side, "latent_width": side, "sequence": 120}
    found = {}
    for one in signature.inputs:
        array = random.standard_normal(one.resolve(sizes), np.float32)
        found[one.name] = np.ones_like(array, np.int64) if one.dtype == "int64" else array
    return found


if __name__ == "__main__":
    command(measure, __doc__, options)
