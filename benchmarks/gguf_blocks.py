"""Steps whose weights stay in the blocks of a GGUF file, beside those of the same weights dequantised.

Qwen-Image's transformer at its real width, one block of its 60: 0.4 G random weights, in blocks of a kind;
1,024 tokens, as at 512². Times are processor time, taken in turns in one process. Memory is the most that
a process of its own has, engine and all, which finds the engine's file in the cache.
"""

import multiprocessing
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import models
import numpy as np
from overhead import PROMPT
from sidebyside import Row, command, compare, in_turns, say

_ENGINES = ("torch:cpu", "onnxruntime:cpu", "openvino:CPU")
_KINDS = ("Q8_0", "Q4_0", "Q4_1")
#: What is asked for, of blocks that stay and of others.
_KEPT, _PLAIN = "gguf", "float32"


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--engines", default=",".join(_ENGINES), help="some of %(default)s")
    parser.add_argument("--kinds", default=",".join(_KINDS), help="some of %(default)s")
    parser.add_argument("--tokens", type=int, default=1024, help="of the picture")


def measure(options: Namespace) -> list[Row]:
    rounds = 1 if options.quick else (options.rounds or 3)
    folder = models.qwen_image(options.work, quick=options.quick)
    tokens = 64 if options.quick else options.tokens
    rows = []
    for kind in options.kinds.split(","):
        file = models.in_gguf(folder, kind)
        for engine in options.engines.split(","):
            rows.append(_row(engine, kind, file, folder, tokens, rounds))
    return rows


def _row(engine: str, kind: str, file: Path, folder: Path, tokens: int, rounds: int) -> Row:
    say(f"{kind}, {engine}")
    pipes = {way: _opened(engine, way, file, folder) for way in (_KEPT, _PLAIN)}
    found, expected = (np.asarray(_drawn(pipe, tokens)) for pipe in pipes.values())
    error = np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
    times = in_turns(rounds, {way: _timed(pipe, tokens) for way, pipe in pipes.items()})
    pipes.clear()
    peaks = {way: _apart(_peak, engine, way, file, folder, tokens) for way in (_KEPT, _PLAIN)}
    return compare(
        f"Two steps with weights in {kind}, {engine}",
        times[_KEPT],
        times[_PLAIN],
        unit="s",
        against="dequantised",
        note=f"error {error:.1e}; {peaks[_KEPT] / 1e6:.0f} MB against {peaks[_PLAIN] / 1e6:.0f}, "
        f"{peaks[_KEPT] / peaks[_PLAIN]:.2f}×",
    )


def _opened(engine: str, precision: str, file: Path, folder: Path) -> Any:
    from perfuse import DiffusionPipeline

    asked = {"precision": f"transformer={precision}", "backend": engine}
    return DiffusionPipeline.from_single_file(file, config=folder, **asked)


def _drawn(pipe: Any, tokens: int) -> Any:
    side = int(tokens**0.5) * 2 * pipe.vae_scale_factor  # two rows of latents are one of tokens
    settings = {"height": side, "width": side, "num_inference_steps": 2, "seed": 0}
    return pipe(PROMPT, **settings, max_sequence_length=512, output_type="latent").images


def _timed(pipe: Any, tokens: int) -> Callable[[], float]:
    """The processor time of two steps."""

    def run() -> float:
        began = time.process_time()
        _drawn(pipe, tokens)
        return time.process_time() - began

    return run


def _apart(measured: Callable[..., int], *arguments: Any) -> int:
    """What a function gives in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(measured, *arguments).result()


def _peak(engine: str, precision: str, file: Path, folder: Path, tokens: int) -> int:
    from perfuse.memory import peak_memory

    _drawn(_opened(engine, precision, file, folder), tokens)
    return peak_memory() or 0


if __name__ == "__main__":
    command(measure, __doc__, options)
