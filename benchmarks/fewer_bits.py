"""Predictions of a UNet with its weights in fewer bits, beside float32: time, error, bytes, memory.

Stable Diffusion 1.5 at less than half the width and depth, 256², with and without the prompt: a UNet of
92 M parameters with random weights. Times are processor time, taken in turns in one process: other
programs may run beside it. The error is the RMS of the difference as a part of the prediction's. Memory
is the most that a process of its own has, engine and all.
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
from sidebyside import Row, command, compare, in_turns, say

#: Engine to the precisions that are compared with float32, each with the part of its time promised.
_WAYS: dict[str, dict[str, float | None]] = {
    "torch:cpu": dict.fromkeys(("bfloat16", "int8", "int4")),
    "onnxruntime:cpu": dict.fromkeys(("int8", "int4")),
    "openvino:CPU": dict.fromkeys(("bfloat16", "int8", "int4", "int8+bfloat16", "int4+bfloat16")),
}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--engines", default=",".join(_WAYS), help="some of %(default)s")
    parser.add_argument("--precisions", default="", help="some of them; by default all")


def measure(options: Namespace) -> list[Row]:
    checkpoint = models.middle(options.work)
    rounds = 1 if options.quick else (options.rounds or 5)
    rows = []
    for engine in options.engines.split(","):
        asked = options.precisions.split(",") if options.precisions else list(_WAYS[engine])
        rows += _engine(engine, asked, checkpoint, rounds)
    return rows


def _engine(engine: str, precisions: list[str], checkpoint: Path, rounds: int) -> list[Row]:
    inputs = _inputs()
    say(f"float32, {engine}")
    plain = _program(engine, "float32", checkpoint)
    expected = _predicted(plain, inputs)
    plain_peak = _peak(engine, "float32", checkpoint)
    rows = []
    for precision in precisions:
        say(f"{precision}, {engine}")
        program = _program(engine, precision, checkpoint)
        found = _predicted(program, inputs)
        error = np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
        times = in_turns(rounds, {"other": _timed(program, inputs), "plain": _timed(plain, inputs)})
        peak = _peak(engine, precision, checkpoint)
        note = f"error {error:.1e}, {peak / 1e6:.0f} MB against {plain_peak / 1e6:.0f}"
        rows.append(
            compare(
                f"A prediction in {precision}, {engine}",
                times["other"],
                times["plain"],
                unit="s",
                against="float32",
                target=_WAYS[engine].get(precision),
                note=note,
            )
        )
        program.close()
    return rows


def _inputs() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "sample": rng.standard_normal((2, 4, 32, 32), np.float32),
        "timestep": np.full(2, 500, np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 77, 256), np.float32),
    }


def _program(engine: str, precision: str, checkpoint: Path) -> Any:
    from perfuse import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(checkpoint, backend=engine, precision=precision)
    return pipe.program("unet")


def _predicted(program: Any, inputs: dict[str, Any]) -> Any:
    (found,) = program(**inputs).values()
    return found


def _timed(program: Any, inputs: dict[str, Any]) -> Callable[[], float]:
    def run() -> float:
        began = time.process_time()
        program(**inputs)
        return time.process_time() - began

    return run


def _peak(engine: str, precision: str, checkpoint: Path) -> int:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_peak_here, engine, precision, checkpoint).result()


def _peak_here(engine: str, precision: str, checkpoint: Path) -> int:
    import resource

    _program(engine, precision, checkpoint)(**_inputs())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    command(measure, __doc__, options)
