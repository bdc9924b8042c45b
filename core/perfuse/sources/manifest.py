"""``perfuse.json``, the manifest of an exported folder: plain data, checked on reading."""

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.quantized import Calibration
from perfuse.contract.spec import PipelineSpec, Signature
from perfuse.errors import ArtifactError, CheckpointError
from perfuse.models.registry import check_config
from perfuse.sources.files import open_file, read_json
from perfuse.sources.plain import from_plain, to_plain

__all__ = ["MANIFEST", "ExportedComponent", "Manifest", "inside", "is_artifact", "tool_versions"]

MANIFEST = "perfuse.json"
_VERSION = 2


def is_artifact(folder: Path) -> bool:
    """Whether the folder is an exported artifact."""
    return os.path.isfile(folder / MANIFEST)


def inside(folder: Path, relative: str) -> Path:
    """The path of a file in the folder, from a relative path in the manifest.

    Raises:
        ArtifactError: the path leads out of the folder: it is absolute, or has ``..`` or a link.
    """
    path = PurePosixPath(relative)
    plain = bool(path.parts) and ".." not in path.parts and not any(c in relative for c in "\\\0")
    rooted = path.is_absolute() or PureWindowsPath(relative).drive != ""
    if not plain or rooted or not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{folder / MANIFEST} names the file {relative!r}, which is outside the folder. "
            "The artifact was tampered with, or is damaged; export it again."
        )
    return folder / path


def tool_versions(distributions: Sequence[str]) -> dict[str, str]:
    """The installed version of each distribution, read without importing any."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open_file(path, error=ArtifactError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class ExportedComponent:
    """One component of an artifact."""

    format: str
    #: The main file, relative to the artifact's folder.
    file: str
    precision: str
    #: The signature as exported, with the fixed dimensions filled in.
    signature: Signature
    #: The fixed dimensions; empty for a component that takes any size.
    static: Mapping[str, int] = field(default_factory=dict)
    #: If not empty, the only combinations of sizes that the other dimensions take.
    sizes: tuple[Mapping[str, int], ...] = ()
    #: The exporter's options.
    options: Mapping[str, str] = field(default_factory=FrozenDict)
    #: The scheme that its weights are stored in; empty where that is the precision.
    storage: str = ""
    #: What was measured of it to store it so.
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name in ("static", "options"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))
        object.__setattr__(self, "sizes", tuple(FrozenDict(size) for size in self.sizes))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of an exported folder's ``perfuse.json``."""

    spec: PipelineSpec
    components: Mapping[str, ExportedComponent]
    #: The checkpoint that was exported: ``{"model": …, "revision": …}``.
    source: Mapping[str, str | None]
    #: Every file, relative to the folder, with its size in bytes and its SHA-256. The SHA-256 is
    #: empty in a folder that another tool wrote.
    files: Mapping[str, Mapping[str, Any]]
    #: The tools that wrote it, with their versions.
    tools: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write ``perfuse.json`` into the folder."""
        data = {"version": _VERSION, **to_plain(self)}
        data["pipeline"] = data.pop("spec")
        (folder / MANIFEST).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ``perfuse.json`` and check that every file exists and has the recorded size.

        Raises:
            ArtifactError: the manifest is missing, malformed or newer; a file is missing or has
                another size; a path leaves the folder.
        """
        path = folder / MANIFEST
        try:
            data = read_json(path, error=ArtifactError, remedy="Export the model again.")
            version = data["version"]
            if version != _VERSION:
                raise ArtifactError(
                    f"{path} has format version {version}; this perfuse reads {_VERSION}. "
                    "Update perfuse, or export the model again."
                )
            fields = {name: value for name, value in data.items() if name != "version"}
            fields["spec"] = fields.pop("pipeline")
            manifest = from_plain(cls, fields)
            manifest._check(folder)
        except CheckpointError as exc:  # of a component's config
            raise ArtifactError(str(exc)) from exc
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ArtifactError(
                f"{path} was to be read as an artifact's manifest; {type(exc).__name__}: {exc}. "
                "Export the model again."
            ) from exc
        return manifest

    def files_of(self) -> dict[str, list[str]]:
        """The files of each component: those in its folder, or its main file and its parts.

        Another tool's layout may hold all components in one folder, and a component in several
        parts numbered from 1.
        """
        found = {}
        for name, component in self.components.items():
            folder, slash, _ = component.file.partition("/")
            prefix = f"{name}/" if slash and folder == name else component.file
            if numbered := re.fullmatch(r"(.*\D)1(\.\w+)?", prefix):
                prefix = numbered[1]
            found[name] = [file for file in self.files if file.startswith(prefix)]
        return found

    def _check(self, folder: Path) -> None:
        """Check that files exist with their sizes, and that the components match the spec's."""
        for name, entry in self.files.items():
            size, digest = entry.get("size"), entry.get("sha256")
            if type(size) is not int or not isinstance(digest, str):
                raise ValueError(
                    f"the file {name} has the size {size!r} and the SHA-256 {digest!r}"
                )
            _check_size(inside(folder, name), size)
        if not self.components or not set(self.components) <= set(self.spec.components):
            raise ValueError(
                f"it holds {', '.join(self.components) or 'no components'}; the pipeline has "
                f"{', '.join(self.spec.components)}"
            )
        for described in self.spec.components.values():
            check_config(described.class_name, described.config, where=folder / MANIFEST)
        for name, component in self.components.items():
            inside(folder, component.file)
            if not any(
                f == component.file or f.startswith(f"{component.file}/") for f in self.files
            ):
                raise ValueError(f"{component.file}, the file of {name}, is not among its files")

    def verify(self, folder: Path) -> None:
        """Compare every file's SHA-256 with the recorded one.

        Raises:
            ArtifactError: a file has changed, or the folder has no recorded checksums.
        """
        for name, entry in self.files.items():
            if not entry["sha256"]:
                raise ArtifactError(
                    f"{folder} was to be verified; another tool wrote it, without checksums of its "
                    "files. Export the checkpoint with perfuse to have them."
                )
            if sha256(inside(folder, name)) != entry["sha256"]:
                raise ArtifactError(
                    f"{folder / name} is not the file that was exported: its SHA-256 differs from "
                    f"the one in {MANIFEST}. Copy or export it again."
                )


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        raise ArtifactError(
            f"{path} should hold {size} bytes; "
            f"{'it is missing' if found is None else f'it holds {found}'}. "
            "Copy or export it again."
        )
