"""A checkpoint that the machine has never seen, from the command to its first step and first picture.

Beside Diffusers, which loads it, and optimum, which exports it first, where its environment is there
(see environments.py). perfuse starts with graphs that are known, as those are which come along, and
with none, so that it makes them. Every start is a process of its own; perfuse's has an empty cache.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import environments
import models
from sidebyside import Row, command, compare, in_turns, say

_MB = 1e6
#: What each child begins with: it says when its first step is done, and what it holds then.
_SAYS = """
import json, re, resource, sys, time

def stepped(*arguments):
    global stepped
    with open("/proc/self/smaps_rollup") as file:
        found = re.findall(r"^(Anonymous|Pss): +([0-9]+) kB$", file.read(), re.M)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {**{name: int(size) * 1024 for name, size in found}, "Peak": peak * 1024}
    print("STEP " + json.dumps({"at": time.time(), **memory}), flush=True)
    stepped = lambda *arguments: arguments[-1]
    return arguments[-1]

model, target, size, graphs = sys.argv[1:]
call = dict(num_inference_steps=2, height=int(size), width=int(size),
            callback_on_step_end=lambda *given: stepped(*given))
"""
_PERFUSE = """
from pathlib import Path
from perfuse import DiffusionPipeline
import perfuse.run.graph_sets
if graphs:
    perfuse.run.graph_sets.GRAPHS = Path(graphs)
pipe = DiffusionPipeline.from_pretrained(model, backend=target)
pipe("a red circle", **call)
"""
_DIFFUSERS = """
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(
    model, safety_checker=None, requires_safety_checker=False)
pipe("a red circle", **call)
"""
_OPTIMUM = {
    "onnxruntime:cpu": ("optimum-onnx", "optimum.onnxruntime", "ORTDiffusionPipeline"),
    "openvino:CPU": ("openvino", "optimum.intel", "OVDiffusionPipeline"),
}


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What one start took."""

    #: Seconds from the command to the end of the first step, and of the picture.
    step: float
    picture: float
    #: Bytes after the first step: the process's own; with its share of mapped files; the most.
    own: int
    mapped: int
    peak: int
    #: Bytes that it left on the disk.
    written: int = 0


def measure(options: Namespace) -> list[Row]:
    return [row for backend in _OPTIMUM for row in _rows(options, backend)]


def _rows(options: Namespace, backend: str) -> list[Row]:
    checkpoint = models.sd15(options.work, quick=options.quick, seed=100)
    name = "the middle model" if options.quick else "SD 1.5-sized"
    size = "64" if options.quick else "256"
    found: dict[str, list[_Start]] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        scratch = Path(folder)
        known = _known(checkpoint, backend, size, scratch)
        sides = {
            "known": lambda: _with_perfuse(checkpoint, backend, size, scratch, known),
            "unknown": lambda: _with_perfuse(checkpoint, backend, size, scratch, None),
            "Diffusers": lambda: _child(sys.executable, _DIFFUSERS, checkpoint, "cpu", size),
            **_optimum(checkpoint, backend, size, scratch),
        }
        say(f"{backend}: {', '.join(sides)}")

        def side(key: str) -> Callable[[], float]:
            def start() -> float:
                found.setdefault(key, []).append(sides[key]())
                return found[key][-1].step

            return start

        in_turns(options.rounds or 3, {key: side(key) for key in sides})
    what = f"a checkpoint never seen, {name}, on {backend}"
    return list(_compared(what, found, size, backend))


def _compared(
    what: str, found: Mapping[str, Sequence[_Start]], size: str, backend: str
) -> Iterator[Row]:
    told = "; ".join(f"{side}: {_told(starts[-1])}" for side, starts in found.items())
    for ours in ("known", "unknown"):
        for theirs in [side for side in found if side not in ("known", "unknown")]:
            mark = 1.0 if (ours, theirs, backend) == _MARK else None
            yield compare(
                f"To the first step of {what}, graphs {ours}",
                [one.step for one in found[ours]],
                [one.step for one in found[theirs]],
                unit="s",
                against=theirs,
                target=mark,
                note=f"At {size}×{size}, with guidance. {told}." if mark is not None else "",
            )
            yield compare(
                f"To the first picture of {what}, graphs {ours}, 2 steps",
                [one.picture for one in found[ours]],
                [one.picture for one in found[theirs]],
                unit="s",
                against=theirs,
            )


#: What was promised.
_MARK = ("known", "Diffusers", "openvino:CPU")


def _told(start: _Start) -> str:
    return (
        f"{start.own / _MB:.0f} MB of its own, {start.mapped / _MB:.0f} with mapped files, "
        f"{start.peak / _MB:.0f} at most, {start.written / _MB:.1f} written"
    )


def _known(checkpoint: Path, backend: str, size: str, scratch: Path) -> Path:
    """A cache that has the graphs of the checkpoint's configs, and nothing else of it."""
    say(f"{backend}: graphs are made")
    known = scratch / "known"
    shutil.rmtree(known, ignore_errors=True)
    _child(sys.executable, _PERFUSE, checkpoint, backend, size, cache=known)
    return known


def _with_perfuse(
    checkpoint: Path, backend: str, size: str, scratch: Path, known: Path | None
) -> _Start:
    """A start with graphs that are known, or with none."""
    cache = scratch / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    if known is not None:
        shutil.copytree(known, cache)
    before = _size(cache)
    graphs = "" if known is not None else str(scratch / "none")
    start = _child(sys.executable, _PERFUSE, checkpoint, backend, size, graphs, cache=cache)
    return _with_written(start, _size(cache) - before)


def _optimum(
    checkpoint: Path, backend: str, size: str, scratch: Path
) -> dict[str, Callable[[], _Start]]:
    """Export and run with optimum, where its environment is there."""
    name, module, kind = _OPTIMUM[backend]
    if not environments.there(name):
        return {}
    code = (
        f"from {module} import {kind}\n"
        f'pipe = {kind}.from_pretrained(model)\npipe("a red circle", **call)\n'
    )

    def start() -> _Start:
        began = time.time()
        own = scratch / "optimum"
        shutil.rmtree(own, ignore_errors=True)
        artifact = environments.exported(name, checkpoint, own)
        interpreter = str(environments.python(name))
        ran = _child(interpreter, code, artifact, "cpu", size, began=began)
        return _with_written(ran, _size(own))

    return {f"{name}: export and run": start}


def _with_written(start: _Start, written: int) -> _Start:
    return _Start(**{**vars(start), "written": written})


def _child(
    interpreter: str,
    code: str,
    model: Path,
    target: str,
    size: str,
    graphs: str = "",
    *,
    cache: Path | None = None,
    began: float | None = None,
) -> _Start:
    """Run a model in a process of its own."""
    began = time.time() if began is None else began
    own = {"PERFUSE_CACHE": str(cache)} if cache is not None else {}
    given = environments.variables() if interpreter != sys.executable else dict(os.environ)
    done = subprocess.run(
        [interpreter, "-c", _SAYS + code, model, target, size, graphs],
        env={**given, **own, "HF_HUB_OFFLINE": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    ended = time.time()
    if done.returncode:
        sys.exit(f"{model} on {target} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("STEP ")]
    said = json.loads(line.removeprefix("STEP "))
    return _Start(
        step=said["at"] - began,
        picture=ended - began,
        own=said["Anonymous"],
        mapped=said["Pss"],
        peak=said["Peak"],
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    command(measure, __doc__)
