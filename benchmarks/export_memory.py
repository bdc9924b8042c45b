"""Peak memory and time of exporting a checkpoint of Stable Diffusion 1.5's size.

The export runs in a process of its own, which is looked at every few milliseconds. Resident memory
counts the pages of mapped files too, which the system may take back at any time; what is left without
them is the process's own.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import models
from sidebyside import Row, command, say

_EVERY = 0.02  # seconds between two looks
_GB = 1e9

#: What the child runs: `perfuse export`, telling which component it has come to.
_CHILD = """
import sys
from perfuse import DiffusionPipeline
from perfuse.progress import reporting
with reporting(lambda progress: print(progress.message, flush=True)):
    DiffusionPipeline.from_pretrained(sys.argv[1]).export(sys.argv[2], to=sys.argv[3])
"""


def measure(options: Namespace) -> list[Row]:
    checkpoint = models.sd15(options.work, quick=options.quick)
    weights = (checkpoint / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    rows = []
    for to in ("onnx", "openvino"):
        say(f"exporting {checkpoint.name} to {to}")
        watched = _watch(checkpoint, options.work / f"{checkpoint.name}-{to}", to)
        name = "the middle model" if options.quick else "an SD 1.5-sized model"
        stages = ", ".join(f"{n} {p / _GB:.2f}" for n, p in watched.stages.items())
        rows.append(
            Row(
                what=f"Peak memory of exporting {name} to {to}",
                ours=watched.peak / _GB,
                theirs=weights / _GB,
                unit="GB",
                against="UNet's float32 weights",
                figure=watched.peak / weights,
                target=None if options.quick else 1.5,
                note=f"{watched.own / _GB:.2f} GB of it at most its own, the rest mapped files. "
                f"Highest while at each (GB): {stages}.",
            )
        )
        rows.append(
            Row(
                what=f"Time of exporting {name} to {to}",
                ours=watched.seconds,
                unit="s",
                figure=watched.seconds,
                figure_unit="s",
                note=f"{watched.cpu:.0f} s of processor time. Seconds at each: "
                + ", ".join(f"{n} {s:.0f}" for n, s in watched.times.items())
                + ".",
            )
        )
    return rows


@dataclass
class _Watched:
    seconds: float = 0.0
    #: The most resident memory, and the most of it that is no file's, in bytes.
    peak: int = 0
    own: int = 0
    #: The seconds that the processors worked for it.
    cpu: float = 0.0
    #: The most resident memory during each stage, and the time spent in it.
    stages: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)


def _watch(checkpoint: Path, folder: Path, to: str) -> _Watched:
    shutil.rmtree(folder, ignore_errors=True)
    watched = _Watched()
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(checkpoint), str(folder), to], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    stage, since = "start", began
    while True:
        said = (child.stdout.read() or b"").decode().strip().splitlines()
        if said:
            stage = _stage(said[-1])
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        memory = _memory(child.pid)
        watched.own = max(watched.own, memory.get("RssAnon", 0))
        watched.stages[stage] = max(watched.stages.get(stage, 0), memory.get("VmRSS", 0))
        now = time.perf_counter()
        watched.times[stage] = watched.times.get(stage, 0.0) + now - since
        since = now
        time.sleep(_EVERY)
    watched.seconds = time.perf_counter() - began
    watched.peak = usage.ru_maxrss * 1024  # the system's own count, between two looks too
    watched.cpu = usage.ru_utime + usage.ru_stime
    if status:
        sys.exit(f"The export to {to} failed.")
    return watched


def _stage(message: str) -> str:
    match = re.match(r"Exporting (\w+)", message)
    return match[1] if match else "manifest"


def _memory(pid: int) -> Mapping[str, int]:
    """The lines of /proc/PID/status that are sizes, in bytes; Linux only."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(size) * 1024 for name, size in re.findall(r"(\w+):\s+(\d+) kB", text)}


if __name__ == "__main__":
    command(measure, __doc__)
