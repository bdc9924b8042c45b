"""``python -m perfuse.run SCRIPT …``: a program that cannot be edited, with Diffusers patched."""

import os
import runpy
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perfuse.bridge.accelerate import Acceleration, accelerate
from perfuse.bridge.patching import Patch
from perfuse.contract.target import Placement, Target
from perfuse.errors import ConfigError, PerfuseError, UnsupportedError
from perfuse.plugins import host
from perfuse.sources.store import ArtifactStore

__all__ = ["main"]

_USAGE = """\
usage: PERFUSE_ACCELERATE=TARGET python -m perfuse.run SCRIPT [ARGUMENTS …]
       PERFUSE_ACCELERATE=TARGET python -m perfuse.run -m MODULE [ARGUMENTS …]

Runs a program as Python does. The pipelines and models that it opens with Diffusers run on TARGET:
openvino, unet=openvino:GPU, …; PERFUSE_PRECISION is their precision. What ran where is said on
standard error when they are done."""


def main(arguments: Sequence[str]) -> None:
    """Run a script, or a module after ``-m``, with the arguments that follow it."""
    if list(arguments) in (["-h"], ["--help"]):
        print(_USAGE)
        return
    if list(arguments) in ([], ["-m"]):
        print(_USAGE, file=sys.stderr)
        sys.exit(2)
    try:
        backend, precision = _asked()
        for target in _targets(backend):
            _try(target, precision)
        patch = Patch(backend, precision, _watch)
    except PerfuseError as exc:
        print(f"perfuse: {exc}", file=sys.stderr)
        sys.exit(2)
    with patch:
        _run(list(arguments))


def _asked() -> tuple[str, str | None]:
    """What the environment says.

    Raises:
        ConfigError: it says nothing.
    """
    backend = os.environ.get("PERFUSE_ACCELERATE", "").strip()
    if not backend:
        raise ConfigError(
            "PERFUSE_ACCELERATE is not set; it says where a program's pipelines run. Set it: "
            "PERFUSE_ACCELERATE=openvino python -m perfuse.run SCRIPT"
        )
    return backend, os.environ.get("PERFUSE_PRECISION", "").strip() or None


def _targets(backend: str) -> list[Target]:
    placement = Placement.parse(backend)
    every = (placement.default, *placement.components.values())
    return list({str(target): target for target in every}.values())


def _try(target: Target, precision: str | None) -> None:
    """Run a small layer on a target: its device, its exporter and the precision are there.

    Raises:
        BackendError: the backend is unknown, or its engine is not installed.
        ConfigError: another of them is not.
    """
    host().backend(target.backend)
    if not host().backends()[target.backend].formats:
        return  # PyTorch itself
    import torch

    with tempfile.TemporaryDirectory() as folder:
        layer = torch.nn.Linear(4, 4)
        store = ArtifactStore(Path(folder))
        accelerate(layer, str(target), precision=precision, store=store, strict=True)
        try:
            with torch.no_grad():
                layer(torch.ones(1, 4))
        except UnsupportedError as exc:
            raise ConfigError(f"PERFUSE_ACCELERATE asks for {target}: {exc.__cause__}") from exc
        layer.perfuse.restore()  # type: ignore[union-attr, operator]


def _run(arguments: list[str]) -> None:
    """Run a program as ``python SCRIPT …`` and ``python -m MODULE …`` do."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    if not Path(arguments[0]).exists():
        print(f"perfuse: {arguments[0]} was to be run; there is no such file.", file=sys.stderr)
        sys.exit(2)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")


def _watch(made: Any) -> None:
    """Say what something did when it is gone, or when the program ends."""
    from torch import nn

    done: Acceleration = made.perfuse
    if isinstance(made, nn.Module):  # its acceleration holds it: told of if it is there at the end
        weakref.finalize(made, _say_if_there, weakref.ref(done))
    else:
        weakref.finalize(made, _say, done)


def _say_if_there(held: "weakref.ref[Acceleration]") -> None:
    done = held()
    if done is not None:
        _say(done)


def _say(done: Acceleration) -> None:
    for row in done.report():
        print(f"perfuse: {row}", file=sys.stderr)
