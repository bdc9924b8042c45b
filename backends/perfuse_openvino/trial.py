"""The first compilation of another library's graph, in a process of its own, which it may end.

Perfuse's own graphs are compiled by conformance on every engine; what Diffusers' and transformers'
code becomes nobody saw before. ``python -m perfuse_openvino.trial REQUEST`` is the process.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from perfuse.backend import Component
from perfuse.errors import ExecutionError, PerfuseError
from perfuse.sources import ArtifactStore, read_json, write_json
from perfuse_exporters.openvino.engine import import_openvino

__all__ = ["main", "try_first"]

#: In the store, so that ``perfuse cache`` lists and clears it: a file a graph, device and version.
_TRIED = "openvino-tried"
#: What the process says when OpenVINO is about to be asked; what ended before that says nothing of it.
_BEGUN = "begun"
#: Ends that others bring about: a lack of memory, Ctrl-C, ``kill``.
_OF_OTHERS = ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP")


def try_first(
    path: Path,
    component: Component,
    device: str,
    properties: Mapping[str, str],
    store: ArtifactStore,
) -> None:
    """Compile a file and run it once, unless that was done before on this device and version.

    OpenVINO keeps what it compiles where ``properties`` have its cache, so that the next compilation is
    a matter of reading.

    Args:
        path: The IR.
        component: What it computes; its signature has the sizes to run.
        device: OpenVINO's name of the device.
        properties: What to compile with.
        store: Where the result is kept.

    Raises:
        ExecutionError: it ended the process, now or before.
    """
    openvino = import_openvino()
    known = _record(path, device, properties, openvino.__version__, store)
    ended = _read(known)
    if ended is None:
        ended = _ended(path, component, device, properties)
        if known is not None and ended is not None and ended not in _OF_OTHERS:
            with suppress(PerfuseError):  # a full disk: it is tried again the next time
                write_json(known, {"ended": ended})
    if ended:
        raise ExecutionError(
            f"compiling {component.name} ends the process on openvino:{device} ({ended}, OpenVINO "
            f"{openvino.__version__}). Update OpenVINO, or run this component on another backend."
        )


def _record(
    path: Path, device: str, properties: Mapping[str, str], version: str, store: ArtifactStore
) -> Path | None:
    """The file with what came of a graph's trial; ``None`` where none can be written."""
    folder = store.shared(_TRIED)
    said = {"device": device, "properties": dict(properties), "openvino": version}
    digest = hashlib.sha256(path.read_bytes() + json.dumps(said, sort_keys=True).encode())
    return folder and folder / f"{digest.hexdigest()[:20]}.json"


def _read(known: Path | None) -> str | None:
    """How a trial ended: empty if well, ``None`` if there was none."""
    try:
        return None if known is None else str(read_json(known)["ended"])
    except (PerfuseError, KeyError, TypeError):
        return None  # not yet, or damaged


def _ended(
    path: Path, component: Component, device: str, properties: Mapping[str, str]
) -> str | None:
    """What ended the process that compiled a file; empty if nothing did, ``None`` if it never began."""
    import subprocess

    known = {dim: component.spec.dim(dim) for dim in component.spec.signature.dims}
    sizes = {dim: (one.example or 1) * one.multiple for dim, one in known.items()}
    request = {
        "path": str(path),
        "device": device,
        "properties": dict(properties),
        "shapes": {one.name: one.resolve(sizes) for one in component.signature.inputs},
    }
    # -P: what lies in the working folder is not imported.
    command = [sys.executable, "-P", "-m", "perfuse_openvino.trial", json.dumps(request)]
    modules = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": modules},
        )
    except OSError:  # no Python to be started: frozen, or embedded in another program
        return None
    return _name(done.returncode) if _BEGUN.encode() in done.stdout else None


def _name(status: int) -> str:
    if status >= 0:
        return f"exit status {status}" if status else ""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def main(arguments: Sequence[str]) -> None:
    """Compile a file and run it once with ones. An error is none here: the caller will meet it, too."""
    request = json.loads(arguments[0])
    core = import_openvino().Core()
    print(_BEGUN, flush=True)
    try:
        compiled = core.compile_model(request["path"], request["device"], request["properties"])
        compiled([_ones(port, request["shapes"]) for port in compiled.inputs])
    except Exception:  # noqa: BLE001 - OpenVINO may raise anything
        return


def _ones(port: Any, shapes: Mapping[str, Sequence[int]]) -> "np.ndarray[Any, Any]":
    shape = next(shapes[name] for name in port.names if name in shapes)
    return np.ones(shape, port.element_type.to_dtype())


if __name__ == "__main__":
    main(sys.argv[1:])
