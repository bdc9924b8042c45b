"""Sets of graphs without weights: those that come with perfuse, and those that a user added.

A set is a folder with one file a graph, named after all that the graph depends on but the tools that
made it: a graph that is known can be used where none of them is installed.
"""

import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from perfuse.errors import ExportError
from perfuse.known import GRAPHS
from perfuse.sources.files import read_bytes, replacing, shown
from perfuse.sources.store import cache_folder, digest_of

__all__ = [
    "DamagedGraphError",
    "GraphSet",
    "KnownGraph",
    "contents",
    "graph_sets",
    "own_graphs",
]

_END = ".tar.xz"
#: More bytes than a graph without weights has.
_LARGEST = 2**29
_AGAIN = "Install perfuse again, or remove the file."
#: The file of an archive that has what ``perfuse graphs list`` says of it.
_ABOUT = "graph.json"


class DamagedGraphError(ExportError):
    """A file of a set cannot be read."""


@dataclass(frozen=True, kw_only=True)
class KnownGraph:
    """A graph in a set."""

    path: Path
    #: What it is the graph of: ``"Stable Diffusion 1"``.
    of: str
    component: str
    class_name: str
    format: str
    precision: str
    #: Bytes on the disk.
    size: int


@dataclass(frozen=True, kw_only=True)
class GraphSet:
    """A folder of graphs, which need not exist."""

    folder: Path

    def unpack(self, label: str, identity: Mapping[str, Any], folder: Path) -> bool:
        """Write a graph's files into an empty folder; whether the set has it.

        Raises:
            DamagedGraphError: its file is damaged; nothing is left in the folder.
        """
        path = self.path(label, identity)
        if not path.is_file():
            return False
        for name, data in contents(path).items():
            if name != _ABOUT:
                (folder / name).write_bytes(data)
        return True

    def pack(self, label: str, identity: Mapping[str, Any], folder: Path, *, of: str) -> Path:
        """Add a graph, whose files are in a folder; returns its file.

        Raises:
            ExportError: it cannot be written.
        """
        about = {"of": of, **{n: identity[n] for n in ("component", "format", "precision")}}
        content = {_ABOUT: json.dumps(about).encode()}
        content |= {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ExportError(
                f"{self.folder} was to be written; the system said: {exc.strerror or exc}. "
                "Free space, or choose another folder (PERFUSE_CACHE)."
            ) from exc
        path = self.path(label, identity)
        with (
            replacing(path, error=ExportError) as partial,
            tarfile.open(partial, "w:xz", preset=9) as archive,
        ):
            for name, data in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return path

    def graphs(self) -> list[KnownGraph]:
        """What is in the set.

        Raises:
            DamagedGraphError: a file is damaged.
        """
        return [_read(path) for path in sorted(self.folder.glob(f"*{_END}"))]

    def path(self, label: str, identity: Mapping[str, Any]) -> Path:
        """The file of a graph, whether it is there or not."""
        return self.folder / f"{label}-{digest_of(identity)}{_END}"


def graph_sets() -> tuple[GraphSet, ...]:
    """The sets to look in, in this order: the user's, and the one that comes with perfuse."""
    return (own_graphs(), GraphSet(folder=GRAPHS))


def own_graphs() -> GraphSet:
    """The set of ``perfuse graphs add``. Another perfuse may compute otherwise, and has another."""
    return GraphSet(folder=cache_folder() / "graphs" / version("perfuse"))


def contents(path: Path) -> dict[str, bytes]:
    """The files of a graph's archive by name; it has no folders.

    Raises:
        DamagedGraphError: it is damaged, or cannot be read.
    """
    packed = read_bytes(path, error=DamagedGraphError, remedy=_AGAIN)
    try:
        whole = io.BytesIO(_unpacked(packed))  # sees that all of it is there
        with tarfile.open(fileobj=whole) as archive:
            members = list(archive)
            if wrong := [one.name for one in members if not (one.isreg() and _is_name(one.name))]:
                raise tarfile.TarError(f"it has {shown(wrong[0])}, which is no plain file in it")
            files = {one.name: archive.extractfile(one) for one in members}
            return {name: file.read() for name, file in files.items() if file is not None}
    except (EOFError, OSError, ValueError, tarfile.TarError, lzma.LZMAError) as exc:
        raise _damaged(path, exc) from exc


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _unpacked(packed: bytes) -> bytes:
    """Decompressed bytes, of which there are no more than a graph has."""
    unpacking = lzma.LZMADecompressor(memlimit=_LARGEST)
    found = unpacking.decompress(packed, _LARGEST)
    if not unpacking.eof:
        raise EOFError("it ends early, or is larger than any graph")
    return found


def _read(path: Path) -> KnownGraph:
    try:
        about = json.loads(contents(path)[_ABOUT])
        return KnownGraph(
            path=path,
            of=str(about["of"]),
            component=str(about["component"]["name"]),
            class_name=str(about["component"]["class_name"]),
            format=str(about["format"]),
            precision=str(about["precision"]),
            size=path.stat().st_size,
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise _damaged(path, exc) from exc


def _damaged(path: Path, exc: Exception) -> DamagedGraphError:
    return DamagedGraphError(f"{shown(path)}, a graph that is known, is damaged: {exc}. {_AGAIN}")
