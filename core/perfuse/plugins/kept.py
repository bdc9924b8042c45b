"""The cache of findings about plugins, each valid until something it depends on changes.

A record is a JSON file. A damaged, foreign or outdated record is ignored; if the cache cannot be
written, findings are made anew each time.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfuse.errors import PerfuseError
from perfuse.sources.files import read_json, write_json
from perfuse.sources.store import cache_folder

__all__ = ["Record", "Rests", "forget_all", "loaded_modules", "surroundings"]

_FORMAT = "perfuse-plugin-record 1"
#: Device nodes of accelerators, whose number, kind and permissions a record depends on.
_NODES = (
    "/dev/dri/*",
    "/dev/nvidia*",
    "/dev/neuron*",
    "/dev/accel*",
    "/dev/accel/*",
    "/dev/kfd",
    "/dev/dxg",
    "/dev/hl*",
    "/dev/davinci*",
    "/dev/apex_*",
)
#: Files that change when a driver is installed: the library cache, and driver versions.
_DRIVERS = ("/etc/ld.so.cache", "/etc/OpenCL/vendors", "/etc/vulkan/icd.d")
_DRIVER_VERSIONS = ("/proc/driver/nvidia/version", "/sys/module/*/version")
#: Environment variables with one of these in their name may hide or add a device.
_WORDS = re.compile(
    "PATH|DEVICE|VISIBLE|PLATFORM|DRIVER|LIBRARY|CUDA|GPU|NPU|TPU|CORES|ROC|HIP|HSA|SYCL|ONEAPI"
    "|OPENCL|OCL_|VULKAN|VK_|ZE_|LD_|PYTHON"
)


@dataclass(frozen=True, kw_only=True)
class Rests:
    """The files and distributions that a finding depends on, besides the environment."""

    #: Path to modification time in nanoseconds and size.
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)
    #: Distribution to version.
    distributions: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def on(cls, files: Iterable[str], distributions: Iterable[str] = ()) -> "Rests":
        """The current state of these files and distributions."""
        stamps = {file: _stamp(file) for file in files}
        return cls(
            files={file: stamp for file, stamp in stamps.items() if stamp is not None},
            distributions={name: _version(name) for name in distributions},
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Rests":
        return cls(files=dict(data["files"]), distributions=dict(data["distributions"]))

    def to_dict(self) -> dict[str, Any]:
        return {"files": dict(self.files), "distributions": dict(self.distributions)}

    def hold(self) -> bool:
        """Whether none of it has changed."""
        return all(_stamp(file) == list(was) for file, was in self.files.items()) and all(
            _version(name) == was for name, was in self.distributions.items()
        )


def _stamp(file: str) -> list[int] | None:
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return [found.st_mtime_ns, found.st_size]


def _version(distribution: str) -> str | None:
    """The installed version; ``None`` if the distribution is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        return None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One cached finding, identified by its subject."""

    #: The file's name is made from this: a kind, a name, and whatever makes it unique.
    names: tuple[str, ...]
    #: Returns plain data that must be equal for the record to be valid; called if there is one.
    basis: Callable[[], Mapping[str, Any]]

    @property
    def path(self) -> Path:
        text = json.dumps([*self.names, sys.prefix])
        label = re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(self.names[:2]))[:60]
        return _folder() / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"

    def read(self) -> Mapping[str, Any] | None:
        """The value, with the time it was written as ``"written"``; ``None`` if none is valid."""
        try:
            data = read_json(self.path)
            if data["format"] != _FORMAT or data["basis"] != _plain(self.basis()):
                return None
            value, written = data["value"], float(data["written"])
            holds = isinstance(value, dict) and Rests.from_dict(data["rests"]).hold()
        except (PerfuseError, LookupError, TypeError, ValueError, AttributeError):
            return None
        return {**value, "written": written} if holds and written <= time.time() else None

    def write(self, value: Mapping[str, Any], rests: Rests) -> None:
        """Write a value, if the cache can be written."""
        data = {
            "format": _FORMAT,
            "basis": _plain(self.basis()),
            "rests": rests.to_dict(),
            "written": time.time(),
            "value": value,
        }
        with contextlib.suppress(OSError, PerfuseError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, data, indent=None)

    def forget(self) -> None:
        """Remove it."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _folder() -> Path:
    return cache_folder() / "plugins"


def forget_all() -> None:
    """Remove every cached finding about plugins."""
    for path in _folder().glob("*.json"):
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        _folder().rmdir()


def _plain(basis: Mapping[str, Any]) -> Any:
    """The value as it comes back from JSON."""
    return json.loads(json.dumps(basis))


def surroundings(words: Iterable[str] = ()) -> dict[str, Any]:
    """What determines which devices an engine finds, besides its own files; plain data.

    Args:
        words: Environment variables with one of these in their name are included, too.
    """
    system = os.uname() if hasattr(os, "uname") else sys.getwindowsversion()  # type: ignore[attr-defined]
    return {
        "python": [sys.version, sys.executable, sys.path],
        "system": [str(part) for part in system],
        "user": [os.geteuid(), sorted(os.getgroups())] if hasattr(os, "geteuid") else [],
        "variables": _variables(words),
        "nodes": [_node(path) for pattern in _NODES for path in sorted(glob.glob(pattern))],
        "drivers": [_stamp(path) for path in _DRIVERS],
        "versions": {
            path: _read_start(path)
            for pattern in _DRIVER_VERSIONS
            for path in sorted(glob.glob(pattern))
        },
    }


def _variables(words: Iterable[str]) -> dict[str, str]:
    own = {part for word in words for part in re.split(r"[^A-Z0-9]+", word.upper())}
    own = {part for part in own if len(part) > 2}
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if not name.startswith("XDG_")  # these differ between login sessions
        and (_WORDS.search(name) or any(part in name for part in own))
    }


def _node(path: str) -> list[Any]:
    try:
        found = os.stat(path)
    except OSError:
        return [path]
    return [path, found.st_mode, found.st_uid, found.st_gid, found.st_rdev]


def _read_start(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(300).decode("latin-1")
    except OSError:
        return ""


def loaded_modules(own: Iterable[str], *, since: Collection[str] = ()) -> Rests:
    """Where this process's modules come from: distributions, and files outside of any.

    Args:
        own: Top-level modules whose files are included even if a distribution owns them.
        since: Names of modules to leave out.
    """
    own = set(own)
    owners = importlib.metadata.packages_distributions()
    distributions: set[str] = set()
    files = []
    for name, module in list(sys.modules.items()):
        top, file = name.partition(".")[0], getattr(module, "__file__", None)
        if name in since or not isinstance(file, str) or top in sys.stdlib_module_names:
            continue
        distributions.update(owners.get(top, ()))
        if top in own or top not in owners or any(_is_editable(one) for one in owners[top]):
            files.append(file)
    return Rests.on(files, sorted(distributions))


def _is_editable(distribution: str) -> bool:
    try:
        text = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return False
    return text is not None and '"editable": true' in text
