"""The parts that need AWS's Neuron SDK: compiling with torch-neuronx, and checks of its install.

Nothing here has been executed: the SDK is not on PyPI, and no instance was at hand. The calls are as
https://awsdocs-neuron.readthedocs-hosted.com/en/latest/frameworks/torch/torch-neuronx describes them
(read on 2026-11-20). What surrounds them is tested with a stand-in for the SDK.
"""

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.errors import ConfigError
from perfuse.plugins import said
from perfuse.sources import tool_versions

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "INSTALL",
    "compile_component",
    "compiler_missing",
    "compiler_version",
    "cores",
    "machine",
    "read",
    "replace_weights",
    "runtime_missing",
    "runtime_version",
    "save",
]

INSTALL = (
    "pip install torch-neuronx neuronx-cc --extra-index-url https://pip.repos.neuron.amazonaws.com"
)
#: Where the driver shows a folder for each device, and in it one for each core:
#: https://awsdocs-neuron.readthedocs-hosted.com/en/latest/tools/neuron-sys-tools/neuron-sysfs-user-guide.html
DEVICES = Path("/sys/devices/virtual/neuron_device")
#: What an EC2 instance calls itself.
MACHINE = Path("/sys/devices/virtual/dmi/id/product_name")


def runtime_missing() -> str | None:
    """The parts of the SDK that are missing to run a program, and the remedy; or ``None``."""
    if importlib.util.find_spec("torch_neuronx") is None:
        return f"torch_neuronx is not installed. Run: {INSTALL}"
    if importlib.util.find_spec("libneuronxla") is None:
        return (
            "torch_neuronx is installed, and libneuronxla, which it talks to the runtime through, is "
            f"not. Run: {INSTALL}"
        )
    try:
        importlib.import_module("torch_neuronx")
    except Exception as exc:  # noqa: BLE001 - PyPI has a package of this name that only raises
        return f"torch_neuronx is installed and cannot be imported: {said(exc)}. Run: {INSTALL}"
    return None


def compiler_missing(target: str | None) -> str | None:
    """The same for compiling, which needs no device.

    Args:
        target: The instance to compile for, where one was named.
    """
    if target is not None and not cores():
        # torch_neuronx asks the machine for its kind when it is imported, and fails on others.
        # optimum-neuron does the same (``optimum/neuron/__init__.py``).
        os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", target)
    missing = runtime_missing()
    if missing is not None:
        return missing
    if importlib.util.find_spec("neuronxcc") is None or shutil.which("neuronx-cc") is None:
        return (
            "torch_neuronx is installed, and neuronx-cc, the compiler that it calls, is not, or is "
            f"not on PATH. Run: {INSTALL}"
        )
    return None


def cores() -> int:
    """How many NeuronCores this process may use, by the driver and the runtime's settings.

    With ``--logical-nc-config=2``, trn2's default, a program takes two of them.

    Raises:
        ConfigError: the runtime's environment variables are malformed.
    """
    found = len(list(DEVICES.glob("neuron[0-9]*/neuron_core[0-9]*")))
    visible = os.environ.get("NEURON_RT_VISIBLE_CORES")
    number = os.environ.get("NEURON_RT_NUM_CORES")
    try:
        if visible:
            spans = (part.partition("-") for part in visible.split(","))
            found = min(found, sum(int(end or start) - int(start) + 1 for start, _, end in spans))
        return min(found, int(number)) if number else found
    except ValueError as exc:
        raise ConfigError(
            f"NEURON_RT_VISIBLE_CORES is {visible!r} and NEURON_RT_NUM_CORES is {number!r}; the first "
            "names cores, as 0-1 or 0,2, and the second is a number. Set them so, or not at all."
        ) from exc


def machine() -> str:
    """The instance type, for which torch-neuronx compiles where no other is named: ``inf2.xlarge``."""
    try:
        return MACHINE.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def compiler_version() -> str:
    return tool_versions(("neuronx-cc",))["neuronx-cc"]


def runtime_version() -> str:
    return tool_versions(("torch-neuronx",))["torch-neuronx"]


def compile_component(
    module: "nn.Module",
    inputs: "tuple[Tensor, ...]",
    *,
    arguments: Sequence[str],
    folder: Path,
    inline_weights: bool,
    log: Path,
) -> Any:
    """Trace a module and compile it; neuronx-cc's own output goes to the log.

    Args:
        module: Its parameters are moved to XLA's device and back.
        inputs: In order; their sizes are the file's.
        arguments: Of neuronx-cc.
        folder: For what neuronx-cc leaves behind.
        inline_weights: Whether the weights are constants of the program.
        log: Everything that is printed meanwhile, by whichever process.

    Raises:
        RuntimeError: it could not be traced or compiled; ``neuronx-cc failed with 70``.
    """
    import torch_neuronx

    with _output_in(log):
        return torch_neuronx.trace(
            module,
            inputs,
            compiler_workdir=str(folder),
            compiler_args=list(arguments),
            inline_weights_to_neff=inline_weights,
            # Where there is no device, tracing is done on the CPU, for the --target given.
            **({} if cores() else {"cpu_backend": True}),
        )


def save(model: Any, path: Path) -> None:
    import torch

    torch.jit.save(model, str(path))


def read(path: Path) -> Any:
    """Read a compiled program. It is TorchScript, which can run code: trusted files only."""
    import torch

    load: Any = torch.jit.load
    return load(str(path))


def replace_weights(model: Any, weights: "Mapping[str, Tensor]") -> None:
    """Put other weights into a program that was compiled with its weights apart.

    Args:
        model: As loaded; not one on several cores.
        weights: By the names that the traced module has them under.
    """
    import torch_neuronx

    torch_neuronx.replace_weights(model, dict(weights))


@contextmanager
def _output_in(log: Path) -> Iterator[None]:
    """What this process and those that it starts print, in a file and nowhere else."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    try:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os.dup2(kept[0], 1)
                os.dup2(kept[1], 2)
    finally:
        for descriptor in kept:
            os.close(descriptor)
