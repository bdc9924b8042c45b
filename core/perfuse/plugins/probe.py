"""The child process of ``perfuse doctor`` and of the plugin cache: it may hang or crash safely.

``python -m perfuse.plugins.probe ANSWER REQUEST``: the request is JSON, the answer a file of JSON lines.
Each step is written down before it is taken, so that whoever waits knows which one was the last.
"""

import importlib.metadata
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from perfuse.contract.backend import Backend
    from perfuse.contract.target import Device

__all__ = ["main"]

Say: TypeAlias = Callable[..., None]
#: The largest file that it may write, in bytes: engines keep compiled programs, output has no end.
_LARGEST = 2**30


def main(arguments: Sequence[str]) -> None:
    """Answer one request: ``{"declare": KEY}`` of a plugin, or ``{"backend": NAME, …}``."""
    _limit_files()
    with open(arguments[0], "a", encoding="utf-8") as file:

        def say(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        request = json.loads(arguments[1])
        if "declare" in request:
            say(step="importing it, or asking it for its manifests")
            say(answer=_declare(request["declare"]))
            os._exit(0)  # do not wait for threads that a plugin left running
        try:
            answer = _probe(request["backend"], request["thorough"], say)
        except BaseException as exc:  # noqa: BLE001 - an engine may raise anything
            from perfuse.errors import PerfuseError
            from perfuse.plugins.importing import said

            traceback.print_exc()
            reason = str(exc) if isinstance(exc, PerfuseError) else said(exc)
            answer = {"state": "broken", "reason": reason}
        say(answer=answer)
        say(step="ending")


def _limit_files() -> None:
    """Leave no core file, and no output without end."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    most = _LARGEST if hard == resource.RLIM_INFINITY else min(hard, _LARGEST)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


def _declare(key: str) -> dict[str, Any]:
    from perfuse.plugins.declared import tell
    from perfuse.plugins.installed import entry_points

    return tell(next(entry for entry in entry_points() if entry.key == key))


def _probe(name: str, thorough: bool, say: Say) -> dict[str, Any]:
    from perfuse.plugins.host import host
    from perfuse.plugins.kept import loaded_modules
    from perfuse.plugins.state import State

    if thorough:
        pass  # so that what perfuse sets is there before
    before = State.now()
    say(step="importing its plugin")
    manifest = host().backends()[name]
    answer: dict[str, Any] = {"engines": _versions(manifest.requires)} if thorough else {}
    say(step="importing its class")
    backend = host().backend(name)
    say(step="asking for its devices")
    devices = list(backend.devices())
    answer["devices"] = [
        {
            "target": f"{name}:{device.name}",
            "description": str(device.description),
            "precisions": [str(precision) for precision in device.precisions],
        }
        for device in devices
    ]
    if not devices:
        answer |= {"state": "unavailable", "reason": "its engine lists no device"}
    if thorough:
        say(step="asking what it supports")
        answer["supports"] = {
            f"{name}:{device.name}": _supported(backend, device) for device in devices
        }
        answer["changes"] = before.changed(State.now())
    own = [manifest.impl.partition(".")[0].partition(":")[0]]
    return {**answer, "rests": loaded_modules(own).to_dict()}


def _versions(modules: Sequence[str]) -> dict[str, str]:
    """The distributions of an engine's modules, each with its version."""
    owners = importlib.metadata.packages_distributions()
    names = [name for module in modules for name in owners.get(module.partition(".")[0], ())]
    return {name: importlib.metadata.version(name) for name in dict.fromkeys(names)}


def _supported(backend: "Backend", device: "Device") -> dict[str, str]:
    """Precision to the backend's support level for the bundled model's denoiser."""
    from perfuse.contract.backend import Request
    from perfuse.shapes import CHECKPOINT
    from perfuse.sources.checkpoint import Checkpoint

    spec = Checkpoint.open(CHECKPOINT).spec
    denoiser = spec.denoiser
    sizes = {**spec.latents.dims(*spec.default_size), "batch": 1, "sequence": 77}
    sizes = {dim: sizes[dim] for dim in denoiser.signature.dims}
    answers = {}
    for precision in device.precisions:
        request = Request(component=denoiser, precision=precision, device=device.name)
        support = backend.supports(request)
        answers[precision] = support.level.value
        if not support.works and backend.supports(replace(request, static=sizes)).works:
            answers[precision] = "in fixed sizes"
    return answers


if __name__ == "__main__":
    main(sys.argv[1:])
