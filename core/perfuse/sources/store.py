"""Folders that are either complete or absent, whatever kills the process that writes them."""

import glob
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse.errors import ExportError, InputError
from perfuse.sources.files import shown

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["ArtifactStore", "atomic_file", "atomic_folder", "cache_folder", "locked"]

_PARTIAL = ".partial-"
_HEX = "[0-9a-f]"
_PARTIAL_NAME = re.compile(rf"{re.escape(_PARTIAL)}(.+)-{_HEX}{{8}}")


def cache_folder() -> Path:
    """Where exports made on the way live: ``PERFUSE_CACHE``, or the platform's cache folder."""
    configured = os.environ.get("PERFUSE_CACHE")
    if configured:
        return Path(configured).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("perfuse", appauthor=False)


@contextmanager
def atomic_folder(final: Path, *, replaces: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """A temporary folder beside ``final`` that takes its name once the block has succeeded.

    What is there already stays until then. A process that dies leaves only a folder whose name says
    so; the next writer removes it. Take the lock of ``final`` around this (``locked``).

    Args:
        final: The folder; where it is a link to one, that one.
        replaces: Says of a folder that holds something whether perfuse wrote it, so that it may be
            replaced; none may by default. An empty folder always may, a file never.

    Raises:
        InputError: something is there that may not be replaced.
        ExportError: the folder cannot be written: no permission, no space.
    """
    try:
        final = Path(os.path.realpath(final))
        _check_replaceable(final, replaces)
        final.parent.mkdir(parents=True, exist_ok=True)
        # Not those of a folder whose name is longer: its writer may be alive.
        for stale in final.parent.glob(f"{_PARTIAL}{glob.escape(final.name)}-{_HEX * 8}"):
            shutil.rmtree(stale, ignore_errors=True)
        partial = _beside(final)
        partial.mkdir()
    except InputError:
        raise
    except (OSError, ValueError) as exc:  # ValueError: a name with NUL, or that is no Unicode
        raise _unwritable(final, exc) from exc
    try:
        yield partial
        _sync(partial)
        _check_replaceable(final, replaces)  # somebody may have come in between
        _take_place(partial, final)
    except OSError as exc:
        raise _unwritable(final, exc) from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """A name beside ``final`` for a file that takes its place once the block has succeeded.

    Raises:
        OSError: the file cannot be written.
    """
    partial = _beside(final)
    try:
        yield partial
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def _check_replaceable(final: Path, replaces: Callable[[Path], bool] | None) -> None:
    """Refuse to replace what perfuse did not write."""
    if not os.path.lexists(final):
        return
    if final.is_dir():
        if not any(final.iterdir()) or (replaces is not None and replaces(final)):
            return
        found = "a folder with something else in it"
    else:
        found = "a file" if final.is_file() else "no folder"
    raise InputError(
        f"{shown(final)} was to be written; what is there is {found}. Name a new folder, or move that "
        "away."
    )


def _beside(final: Path) -> Path:
    """A name beside a folder or a file that says that what is there may be removed."""
    return final.parent / f"{_PARTIAL}{final.name}-{uuid.uuid4().hex[:8]}"


def _take_place(partial: Path, final: Path) -> None:
    """Rename, with what is there moved out of the way first: at no moment is ``final`` a part."""
    old = _beside(final)
    had = final.exists()
    if had:
        os.replace(final, old)
    try:
        os.replace(partial, final)
    except OSError:
        if had:
            os.replace(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(folder: Path, exc: OSError | ValueError) -> ExportError:
    why = (exc.strerror if isinstance(exc, OSError) else None) or exc
    return ExportError(
        f"{shown(folder)} was to be written; the system said: {why}. Nothing was kept. "
        "Free space or choose another folder (--output, or PERFUSE_CACHE for the cache)."
    )


def _sync(folder: Path) -> None:
    """Put every file on the disk before the folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


@contextmanager
def locked(final: Path) -> Iterator[None]:
    """Hold the lock between processes that belongs to a folder. Its file is in the cache.

    Raises:
        ExportError: the lock's file cannot be made.
    """
    lock = _lock(final)
    try:
        lock.acquire()
    except OSError as exc:
        raise _unwritable(final, exc) from exc
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _locked_if_free(final: Path) -> Iterator[bool]:
    """The same without waiting: whether nobody else holds the lock."""
    import filelock

    lock = _lock(final)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock(final: Path) -> "BaseFileLock":
    import filelock

    locks = cache_folder() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _unwritable(final, exc) from exc
    name = hashlib.sha256(str(final.absolute()).encode()).hexdigest()[:20]
    return filelock.FileLock(locks / f"{name}.lock")


@dataclass(frozen=True)
class ArtifactStore:
    """The cache of exports made on the way: one folder a key, made once."""

    root: Path

    @classmethod
    def default(cls) -> "ArtifactStore":
        return cls(cache_folder() / "artifacts")

    def folder(self, label: str, key: Mapping[str, object]) -> Path:
        """Where the artifact of a key is, or would be. The label is for people."""
        text = json.dumps(key, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        return self.root / f"{label}-{digest}"

    def get_or_make(
        self, label: str, key: Mapping[str, object], make: Callable[[Path], None]
    ) -> Path:
        """The folder of a key, made by ``make(empty_folder)`` if it is not there yet.

        Two processes that want the same one make it once: the second waits for the first.

        Raises:
            ExportError: it could not be made; nothing is left behind.
        """
        folder = self.folder(label, key)
        if folder.is_dir():
            return folder
        with locked(folder):
            if not folder.is_dir():
                with atomic_folder(folder) as partial:
                    make(partial)
        return folder

    def shared(self, name: str) -> Path | None:
        """A folder for what an engine keeps itself, such as compiled programs.

        ``None`` where nothing can be written.
        """
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        return folder if os.access(folder, os.W_OK) else None

    def entries(self) -> list[tuple[Path, int]]:
        """Every artifact with its size in bytes."""
        if not self.root.is_dir():
            return []
        return [
            (folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
            for folder in sorted(self.root.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
        ]

    def clear(self) -> int:
        """Remove every artifact, and what interrupted writers left; return how many artifacts.

        What another process is writing at the moment stays.
        """
        removed = 0
        for path in sorted(self.root.glob("*")):
            partial = _PARTIAL_NAME.fullmatch(path.name)
            final = path if partial is None else path.with_name(partial[1])
            with _locked_if_free(final) as free:
                if not free or not path.exists():
                    continue
                # It loses its name before the first of its files.
                leaving = _beside(final)
                os.replace(path, leaving)
                shutil.rmtree(leaving, ignore_errors=True)
                removed += not path.name.startswith(".")
        with suppress(OSError):  # not empty, or never there
            self.root.rmdir()
        return removed
