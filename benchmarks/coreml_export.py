"""Time and peak memory of exporting the UNet of a checkpoint of Stable Diffusion 1.5's size to Core ML.

The export runs in a process of its own. Resident memory counts the pages of mapped files too, which
the system may take back at any time.
"""

import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import models
from sidebyside import Row, command, say

_GB = 1e9

#: What the child runs: the UNet of `perfuse export --to coreml --precision float16`.
_CHILD = """
import sys, warnings
from pathlib import Path
from perfuse.sources.opening import open_model
from perfuse_exporters.coreml.exporter import CoreMLExporter
warnings.simplefilter("ignore")
size = int(sys.argv[3])
static = {"batch": 2, "latent_height": size, "latent_width": size, "sequence": 77}
unet = open_model(sys.argv[1]).component("unet", precision="float16", static=static)
CoreMLExporter().export(unet, Path(sys.argv[2]))
"""


def measure(options: Namespace) -> list[Row]:
    checkpoint = models.sd15(options.work, quick=options.quick)
    weights = (checkpoint / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    name = "the middle UNet" if options.quick else "an SD 1.5-sized UNet"
    folder = options.work / f"{checkpoint.name}-coreml-unet"
    say(f"exporting the UNet of {checkpoint.name} to coreml")
    seconds, peak, cpu = _run(checkpoint, folder, size=32 if options.quick else 64)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [
        Row(
            what=f"Peak memory of exporting {name} to coreml",
            ours=peak / _GB,
            theirs=1.5 * weights / _GB,
            unit="GB",
            against="its weights in float32 and in float16 together",
            figure=peak / (1.5 * weights),
            target=None if options.quick else 2.5,
            note=f"From float32 to float16: {written / _GB:.2f} GB written.",
        ),
        Row(
            what=f"Time of exporting {name} to coreml",
            ours=seconds,
            unit="s",
            figure=seconds,
            figure_unit="s",
            note=f"{cpu:.0f} s of processor time.",
        ),
    ]


def _run(checkpoint: Path, folder: Path, *, size: int) -> tuple[float, int, float]:
    """Seconds, the most resident memory in bytes, and the processor's seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    arguments = [sys.executable, "-c", _CHILD, checkpoint, folder, str(size)]
    child = subprocess.Popen(list(map(str, arguments)))
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit("The export to coreml failed.")
    seconds = time.perf_counter() - began
    return seconds, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    command(measure, __doc__)
