"""A checkpoint never seen before, of a config whose graphs are known, beside its own export.

Both start as processes of their own, one with the checkpoint and one with what `perfuse export` wrote
of it, and end after the first denoising step. Another checkpoint of the same config ran before, so
that the graphs are in the cache. What the first start leaves on the disk is counted, and what each
process holds after its first step.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import models
from sidebyside import Row, command, compare, in_turns, say

_MB = 1e6

#: What the child runs; it ends with its first step.
_CHILD = """
import json, os, re, resource, sys
from perfuse import DiffusionPipeline

def memory():
    with open("/proc/self/smaps_rollup") as file:
        found = re.findall(r"^(Anonymous|Pss): +([0-9]+) kB$", file.read(), re.M)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**{name: int(size) * 1024 for name, size in found}, "Peak": peak * 1024}

def stop(pipe, step, timestep, tensors):
    print(json.dumps(memory()), flush=True)
    os._exit(0)

model, backend, size = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(model, backend=backend)
pipe("a red circle", num_inference_steps=2, seed=0, height=int(size), width=int(size),
     callback_on_step_end=stop)
"""


def measure(options: Namespace) -> list[Row]:
    engines = (("onnxruntime:cpu", "onnx"), ("openvino:CPU", "openvino"))
    return [row for backend, to in engines for row in _rows(options, backend, to)]


def _rows(options: Namespace, backend: str, to: str) -> list[Row]:
    known = models.sd15(options.work, quick=options.quick)
    other = models.sd15(options.work, quick=options.quick, seed=100)
    name = "the middle model" if options.quick else "SD 1.5-sized"
    size = "64" if options.quick else "256"
    artifact = models.exported(other, to, options.work)
    held: dict[str, _Memory] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        cache = Path(folder)

        def start(side: str, model: Path) -> None:
            held[side] = _start(model, backend, size, cache)

        say(f"{backend}: a first checkpoint, whose graphs are made")
        start("first", known)
        graphs = _size(cache)
        say(f"{backend}: a second checkpoint beside its export")
        start("checkpoint", other)
        written = _size(cache) - graphs
        start("export", artifact)  # the engine's own cache, where it has one
        sides = {
            "checkpoint": lambda: start("checkpoint", other),
            "export": lambda: start("export", artifact),
        }
        found = in_turns(options.rounds or 3, sides)
    return [
        compare(
            f"Start to the first step of a second checkpoint, {name}, on {backend}",
            found["checkpoint"],
            found["export"],
            unit="s",
            against="its export",
            target=1.5,
            note=f"At {size}×{size}, with guidance. After the step: {_told(held['checkpoint'])}; "
            f"its export: {_told(held['export'])}.",
        ),
        Row(
            what=f"Written to disk for it, on {backend}",
            ours=written / _MB,
            theirs=_size(artifact) / _MB,
            unit="MB",
            against="its export",
            figure=written / _MB,
            figure_unit="MB",
            target=50,
            note=f"The graphs, for every checkpoint of these configs: {graphs / _MB:.1f} MB.",
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """What a process held, in bytes."""

    #: Of its own: no file's.
    anonymous: int
    #: Its own, and its share of what is mapped.
    proportional: int
    #: The most of both at once, files in full.
    peak: int


def _told(memory: _Memory) -> str:
    return (
        f"{memory.anonymous / 1e9:.2f} GB its own, {memory.proportional / 1e9:.2f} with mapped "
        f"files, {memory.peak / 1e9:.2f} at most"
    )


def _start(model: Path, backend: str, size: str, cache: Path) -> _Memory:
    """Run a model to its first step in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, model, backend, size],
        env={**os.environ, "PERFUSE_CACHE": str(cache)},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{model} on {backend} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    said: Mapping[str, int] = json.loads(done.stdout.splitlines()[-1])
    return _Memory(anonymous=said["Anonymous"], proportional=said["Pss"], peak=said["Peak"])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    command(measure, __doc__)
