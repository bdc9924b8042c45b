"""The peers' environments, and what the peers export there themselves.

python benchmarks/environments.py

The newest of them exclude each other, and this project's own Diffusers, so each has an environment of
its own in build/peers, 1.5 GB. What pip installs is pinned in environments/NAME.txt.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sidebyside import say

HERE = Path(__file__).parent
_FOLDER = HERE.parent / "build" / "peers"
#: Its command would also run all that it wrote, beside PyTorch: many minutes.
_TO_ONNX = """
import sys
from optimum.exporters.onnx import main_export
main_export(*sys.argv[1:], task="text-to-image", no_post_process=True, do_validation=False)
"""
_TO_OPENVINO = (
    "optimum.commands.optimum_cli export openvino --task=text-to-image --weight-format=fp32"
)
#: What each interpreter exports with, up to the checkpoint and the folder to write.
_EXPORTS: Mapping[str, Sequence[str]] = {
    "optimum-onnx": ("-c", _TO_ONNX),
    "openvino": ("-m", *_TO_OPENVINO.split(), "--model"),
}
NAMES = tuple(_EXPORTS)


class NoEnvironmentError(Exception):
    """An environment could not be made, or its tools failed."""


def python(name: str) -> Path:
    """The interpreter of an environment, which is made if it is not there.

    Raises:
        NoEnvironmentError: pip could not install what is pinned.
    """
    folder, pins = _FOLDER / name, HERE / "environments" / f"{name}.txt"
    found = folder / "bin" / "python"
    if there(name):
        return found
    say(f"making {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    _run(name, [sys.executable, "-m", "venv", folder])
    _run(name, [found, "-m", "pip", "install", "--no-deps", "--no-compile", "-r", pins])
    shutil.copyfile(pins, folder / pins.name)  # last: it says that all is there
    return found


def there(name: str) -> bool:
    """Whether an environment was made, of what is pinned now."""
    pins = HERE / "environments" / f"{name}.txt"
    made = _FOLDER / name / pins.name
    return made.is_file() and made.read_bytes() == pins.read_bytes()


def exported(name: str, checkpoint: Path, work: Path) -> Path:
    """A checkpoint as the environment's own tool exports it, in float32; once.

    Raises:
        NoEnvironmentError: there is no such environment, or its export failed.
    """
    folder = work / f"{checkpoint.name}-peer-{name}"
    if (folder / "model_index.json").is_file():
        return folder
    interpreter = python(name)
    say(f"exporting {checkpoint.name} with {name}")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _run(name, [interpreter, *_EXPORTS[name], checkpoint, partial])
    partial.rename(folder)
    return folder


def variables(**more: str) -> dict[str, str]:
    """What a process in another environment gets: nothing that leads it to this one's packages."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "HF_HUB_OFFLINE": "1", **more}


def _run(name: str, command: Sequence[str | Path]) -> None:
    done = subprocess.run(
        list(map(str, command)), env=variables(), check=False, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise NoEnvironmentError(f"{name}: {' '.join(map(str, command[1:4]))} … {' '.join(last)}")


if __name__ == "__main__":
    for each in NAMES:
        print(python(each))
