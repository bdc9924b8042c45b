"""Predictions of a UNet with its weights in fewer bits, beside float32: time, error, bytes, memory.

Stable Diffusion 1.5 at less than half the width and depth, 256², with and without the prompt: a UNet of
92 M parameters with random weights. Times are processor time, taken in turns in one process: other
programs may run beside it. The error is the RMS of the difference as a part of the prediction's. Memory
is the most that a process of its own has, engine and all.
"""

import json
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

_HALF = ("bfloat16", "int8+bfloat16", "int4+bfloat16", "w8a8+bfloat16")
_WAYS = {
    "torch:cpu": ("bfloat16", "int8", "int4"),
    "onnxruntime:cpu": ("int8", "int4", "w8a8"),
    "openvino:CPU": ("int8", "int4", "w8a8", *_HALF),
}
#: The part of float32's time that is promised.
_TARGETS = {("openvino:CPU", "w8a8+bfloat16"): 1 / 2.5}


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
    inputs = inputs_of(checkpoint)
    say(f"float32, {engine}")
    plain = program(engine, "float32", checkpoint)
    expected = _predicted(plain, inputs)
    plain_peak = _peak(engine, "float32", checkpoint)
    rows = []
    for precision in precisions:
        say(f"{precision}, {engine}")
        small = program(engine, precision, checkpoint)
        found = _predicted(small, inputs)
        error = np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
        times = in_turns(rounds, {"other": timed(small, inputs), "plain": timed(plain, inputs)})
        peak = _peak(engine, precision, checkpoint)
        note = f"error {error:.1e}, {peak / 1e6:.0f} MB against {plain_peak / 1e6:.0f}"
        rows.append(
            compare(
                f"A prediction in {precision}, {engine}",
                times["other"],
                times["plain"],
                unit="s",
                against="float32",
                target=_TARGETS.get((engine, precision)),
                note=note,
            )
        )
        small.close()
    return rows


def inputs_of(checkpoint: Path) -> dict[str, Any]:
    """A step of one picture of the size that a checkpoint was made for, with and without the prompt."""
    config = json.loads((checkpoint / "unet" / "config.json").read_text(encoding="utf-8"))
    side, width = config["sample_size"], config["cross_attention_dim"]
    rng = np.random.default_rng(0)
    return {
        "sample": rng.standard_normal((2, 4, side, side), np.float32),
        "timestep": np.full(2, 500, np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 77, width), np.float32),
    }


def program(engine: str, precision: str, checkpoint: Path) -> Any:
    """The UNet on an engine, in a precision as it is written after --precision."""
    return opened(engine, precision, checkpoint).program("unet")


def opened(engine: str, precision: str, checkpoint: Path, *transforms: str) -> Any:
    """A pipeline in a precision, with transforms; for ``w8a8`` it is calibrated once."""
    from perfuse import DiffusionPipeline

    scheme, _, computed = precision.rpartition("+")
    if "w8a8" in (scheme, computed):
        file = _calibrated(checkpoint)
        transforms = (f"storage:scheme=w8a8,component=unet,calibration={file}", *transforms)
        precision = computed if scheme else "float32"
    return DiffusionPipeline.from_pretrained(
        checkpoint, backend=engine, precision=precision, transforms=transforms
    )


def _calibrated(checkpoint: Path) -> Path:
    """The ranges of every layer, measured once; none stays as it is, since weights are random."""
    path = checkpoint.with_name(f"{checkpoint.name}-w8a8.json")
    if not path.is_file():
        from perfuse import DiffusionPipeline
        from perfuse.run.calibrating import calibrate
        from perfuse.sources.calibrations import write_calibrations

        pipe = DiffusionPipeline.from_pretrained(checkpoint, backend="torch:cpu")
        found = calibrate(pipe, {"unet": "w8a8"}, [{"prompt": PROMPT}], steps=3, limit=1e9)
        write_calibrations(found, path)
    return path


def _predicted(program: Any, inputs: dict[str, Any]) -> Any:
    (found,) = program(**inputs).values()
    return found


def timed(program: Any, inputs: dict[str, Any]) -> Callable[[], float]:
    """The processor time of a call."""

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
    from perfuse.memory import peak_memory

    program(engine, precision, checkpoint)(**inputs_of(checkpoint))
    return peak_memory() or 0


if __name__ == "__main__":
    command(measure, __doc__, options)
