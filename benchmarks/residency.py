"""A model of Stable Diffusion XL's size in float16 or bfloat16, within 4 GB of memory beside without a limit.

Each side is a process of its own that draws a 512×512 picture in two steps with guidance. Its memory is the
most that was resident, the pages of mapped files counted in, beyond what was there once the pipeline was
open and before anything was loaded. From a checkpoint in float32 weights are cast as they are read;
``--stored float16`` has one whose weights are mapped as they are.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
from sidebyside import Row, command, say

_GB = 1e9
#: The engines, and what each computes in on a CPU.
ENGINES = {"torch:cpu": "bfloat16", "openvino:CPU": "float16", "onnxruntime:cpu": "float16"}
_LIMIT = 4_000_000_000

#: What the child runs.
_CHILD = """
import json, re, sys, time
from perfuse import DiffusionPipeline

def said(what):
    with open("/proc/self/status") as file:
        return int(re.search(what + r":\\s+(\\d+)", file.read())[1]) * 1024

found = {"steps": []}

def stepped(pipe, step, timestep, tensors):
    global began
    found["steps"].append(time.perf_counter() - began)
    details = pipe.programs()["unet"].report().details
    found.update({name: details[name] for name in ("pieces", "kept", "loading") if name in details})
    began = time.perf_counter()
    return tensors

model, backend, precision, memory, size = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(model, backend=backend, precision=precision)
pipe.keep_within(int(memory) or None)
before, began = said("VmRSS"), time.perf_counter()
pipe("a red circle", num_inference_steps=2, seed=0, height=int(size), width=int(size),
     callback_on_step_end=stepped)
print(json.dumps({**found, "decoding": time.perf_counter() - began, "peak": said("VmHWM") - before}))
"""


def measure(options: Namespace) -> list[Row]:
    checkpoint = models.sdxl(options.work, quick=options.quick, stored=options.stored)
    size, memory = (64, 160_000_000) if options.quick else (512, _LIMIT)
    return [
        row
        for backend in options.backend or ENGINES
        for row in _rows(checkpoint, backend, size, memory, alone=options.alone)
    ]


def _rows(checkpoint: Path, backend: str, size: int, memory: int, *, alone: bool) -> list[Row]:
    precision = ENGINES[backend]
    if backend != "torch:cpu":
        say(f"{backend}: making the graphs, where they are not known")
        _make_graphs(checkpoint, backend, precision)
    say(f"{backend}: within {memory / _GB:.2f} GB")
    limited = _run(checkpoint, backend, precision, memory, size)
    name = f"{checkpoint.name} at {size}², {precision} on {backend}"
    told = f"{limited['pieces']} pieces, of which {limited['kept']} stay"
    within = Row(
        what=f"Memory at most within {memory / _GB:.2f} GB, {name}",
        ours=limited["peak"] / _GB,
        unit="GB",
        figure=limited["peak"] / _GB,
        figure_unit="GB",
        target=memory / _GB,
        note=f"The UNet in {told}. Steps of {limited['steps'][0]:.0f} and {limited['steps'][1]:.0f} s, the "
        f"first with the text encoders; loading the UNet's pieces took {limited['loading']:.0f} s of "
        f"both. Decoding: {limited['decoding']:.0f} s.",
    )
    if alone:
        return [within]
    say(f"{backend}: without a limit")
    plain = _run(checkpoint, backend, precision, 0, size)
    return [
        dataclasses.replace(within, theirs=plain["peak"] / _GB, against="without a limit"),
        Row(
            what=f"The second step of it, {name}",
            ours=limited["steps"][1],
            theirs=plain["steps"][1],
            unit="s",
            against="without a limit",
            figure=limited["steps"][1] / plain["steps"][1],
            note=f"To the end of the first step {limited['steps'][0]:.0f} s, "
            f"without a limit {plain['steps'][0]:.0f} s; decoding {limited['decoding']:.0f} and "
            f"{plain['decoding']:.0f} s.",
        ),
    ]


def _make_graphs(checkpoint: Path, backend: str, precision: str) -> None:
    """In a process of its own, which does not count."""
    code = (
        "import sys; from perfuse import DiffusionPipeline\n"
        "from perfuse.run import apart\n"
        "model, backend, precision, format = sys.argv[1:]\n"
        "pipe = DiffusionPipeline.from_pretrained(model, backend=backend, precision=precision)\n"
        "for name in pipe.spec.components:\n"
        "    apart(pipe.component(name), format, pipe.store)\n"
    )
    to = {"openvino:CPU": "openvino", "onnxruntime:cpu": "onnx"}[backend]
    subprocess.run(
        [sys.executable, "-c", code, checkpoint, backend, precision, to],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _run(
    checkpoint: Path, backend: str, precision: str, memory: int, size: int
) -> Mapping[str, Any]:
    """A picture in two steps, in a process of its own."""
    asked = [checkpoint, backend, precision, str(memory), str(size)]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *asked],
        env=os.environ,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{asked} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    say(f"{time.perf_counter() - began:.0f} s")
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--backend", action="append", choices=ENGINES)
    parser.add_argument("--stored", default="float32", choices=("float32", "float16"))
    parser.add_argument("--alone", action="store_true", help="not the sides without a limit: 24 GB")


if __name__ == "__main__":
    command(
        measure,
        __doc__,
        _options,
    )
