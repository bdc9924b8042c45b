"""One step of the largest real configurations that fit a machine of 24 GB, from a checkpoint on the disk.

Weights are random, in bfloat16; a model's weights are in memory at a time (``--memory low``). Each engine
draws in a process of its own, with the graphs in the cache where it has need of any: making them is told apart.
ONNX Runtime's CPU has no bfloat16; it is given float16 where it is asked for.
"""

import json
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import models
import numpy as np
from overhead import PROMPT
from sidebyside import Row, command, say

_GB = 1e9
CASES = ("sana-1.6b", "sd3.5-medium", "klein-4b")
_WAYS = {"torch:cpu": "bfloat16", "openvino:CPU": "bfloat16", "onnxruntime:cpu": "float16"}
#: What the disk has to hold: the checkpoint, and what engines keep in the cache.
_ROOM = 30

#: What the child runs: it draws once, and tells what that took.
_CHILD = """
import json, sys, time
import numpy as np
from perfuse import DiffusionPipeline
from perfuse.arrays import to_numpy
from perfuse.memory import peak_memory

model, backend, precision, side, prompt, file = sys.argv[1:]
began = time.perf_counter(), time.process_time()
pipe = DiffusionPipeline.from_pretrained(model, backend=backend, precision=precision)
pipe.keep_within("low")
latents = pipe(prompt=prompt, num_inference_steps=1, height=int(side), width=int(side), seed=0,
               output_type="latent").images
np.save(file, to_numpy(latents).astype(np.float32))
found = {"seconds": time.perf_counter() - began[0], "processor": time.process_time() - began[1]}
print(json.dumps({**found, "peak": peak_memory()}))
"""


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--case", choices=CASES, default=CASES[0])
    parser.add_argument("--engines", default="torch:cpu,openvino:CPU", help="of %(default)s")
    parser.add_argument(
        "--float32", action="store_true", help="how far they are from float32 on PyTorch, too"
    )
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels")


def measure(options: Namespace) -> list[Row]:
    if options.quick:
        options.case = CASES[0]
    free = shutil.disk_usage(options.work).free / _GB
    there = options.quick or (options.work / options.case / "written").is_file()
    if free < _ROOM and not there:
        sys.exit(f"{options.work} has {free:.0f} GB free; {_ROOM} are needed. Name another --work.")
    checkpoint = models.real(options.work, options.case, quick=options.quick)
    weights = sum(path.stat().st_size for path in checkpoint.glob("*/*.safetensors"))
    rows = []
    truth = None
    if options.float32 and _draw("torch:cpu", checkpoint, options, "float32") is not None:
        truth = np.load(_latents(options.work, "torch:cpu"))
    for engine in options.engines.split(","):
        what = f"One step of {options.case}, {options.side}², {_WAYS[engine]}, {engine}"
        graphs = engine != "torch:cpu"
        first = _draw(engine, checkpoint, options) if graphs else None
        found = _draw(engine, checkpoint, options) if first is not None or not graphs else None
        if found is None:
            rows.append(Row(what=what, ours=0.0, unit="GB", figure=0.0, note="The process ended."))
            continue
        note = f"{found['processor']:.0f} s of processor time. Weights are of all models."
        if first is not None:
            note += f" The first time, when graphs are made, {first['seconds']:.0f} s."
        if truth is not None:
            gap = (np.load(_latents(options.work, engine)) - truth).std() / truth.std()
            note += f" Latents differ from those in float32 by {gap:.2g} of their deviation (RMS)."
        rows.append(
            Row(
                what=what,
                ours=found["peak"] / _GB,
                theirs=weights / _GB,
                unit="GB",
                against="weights",
                figure=found["seconds"],
                figure_unit="s",
                note=note,
            )
        )
    return rows


def _latents(work: Path, engine: str) -> Path:
    return work / f"large-{engine.partition(':')[0]}.npy"


def _draw(
    engine: str, checkpoint: Path, options: Namespace, precision: str = ""
) -> dict[str, float] | None:
    """What a process took that drew once; ``None`` where it did not come to its end."""
    say(f"{options.case} on {engine}")
    file = _latents(options.work, engine)
    precision = precision or _WAYS[engine]
    given = [str(checkpoint), engine, precision, str(options.side), PROMPT, str(file)]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *given],
        env={**os.environ, "PERFUSE_CACHE": str(options.work / "large-cache")},
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        say(f"{options.case} on {engine} ended with {done.returncode}")
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    command(measure, __doc__, options)
