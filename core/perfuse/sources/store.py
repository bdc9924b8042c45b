"""Atomically written folders, and the cache of exports that is made of them."""

import atexit
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse.errors import ExportError, InputError
from perfuse.sources.files import shown, user_path
from perfuse.sources.unfinished import undone

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["ArtifactStore", "atomic_folder", "cache_folder", "digest_of", "locked"]

_PARTIAL = ".partial-"
_HEX = "[0-9a-f]"
_PARTIAL_NAME = re.compile(rf"{re.escape(_PARTIAL)}(.+)-{_HEX}{{8}}")


def cache_folder() -> Path:
    """The folder of the export cache: ``PERFUSE_CACHE``, or the platform's cache folder.

    A temporary one where that cannot be written.
    """
    configured = os.environ.get("PERFUSE_CACHE")
    if configured:
        folder = user_path(configured)
    else:
        import platformdirs

        folder = platformdirs.user_cache_path("perfuse", appauthor=False)
    return folder if _is_writable(folder) else _temporary(folder)


def _is_writable(folder: Path) -> bool:
    """Whether a folder can be written, or made where it is not there yet."""
    there = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), folder)
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


@functools.cache
def _temporary(instead_of: Path) -> Path:
    """A folder that is removed when the process ends; says so."""
    folder = Path(tempfile.mkdtemp(prefix="perfuse-cache-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(
        f"The cache, {shown(instead_of)}, cannot be written; a temporary one is used for this time. "
        "Name another: PERFUSE_CACHE.",
        stacklevel=2,
    )
    return folder


@contextmanager
def atomic_folder(final: Path, *, replaces: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """A temporary folder beside ``final`` that is renamed to it when the ``with`` block succeeds.

    An existing folder stays until then. A killed process leaves only a temporary folder, which the
    next writer removes. Hold the lock of ``final`` around this (``locked``).

    Args:
        final: The folder; if it is a link, the folder that it links to.
        replaces: Whether an existing folder with content may be replaced; by default never. An
            empty folder may always be replaced, a file never.

    Raises:
        InputError: something exists that may not be replaced.
        ExportError: the folder cannot be written: no permission, no space.
    """
    try:
        final = Path(os.path.realpath(final))
        _check_replaceable(final, replaces)
        final.parent.mkdir(parents=True, exist_ok=True)
        # The exact pattern spares folders with a longer name, whose writer may be alive.
        for stale in final.parent.glob(f"{_PARTIAL}{glob.escape(final.name)}-{_HEX * 8}"):
            shutil.rmtree(stale, ignore_errors=True)
        partial = _beside(final)
        partial.mkdir()
    except InputError:
        raise
    except (OSError, ValueError) as exc:  # ValueError: a name with NUL, or that is no Unicode
        raise _unwritable(final, exc) from exc
    remove = functools.partial(shutil.rmtree, partial, ignore_errors=True)
    try:
        with undone(remove):
            yield partial
            _sync(partial)
            _check_replaceable(final, replaces)  # another process may have written it meanwhile
            _take_place(partial, final)
    except OSError as exc:
        raise _unwritable(final, exc) from exc
    finally:
        remove()


def _check_replaceable(final: Path, replaces: Callable[[Path], bool] | None) -> None:
    """Refuse to replace what perfuse did not write."""
    if not os.path.lexists(final):
        return
    if final.is_dir():
        if not any(final.iterdir()) or (replaces is not None and replaces(final)):
            return
        found = "a folder with other files in it"
    else:
        found = "a file" if final.is_file() else "no folder"
    raise InputError(
        f"{shown(final)} was to be written; it is {found} already. Name a new folder, or move that "
        "away."
    )


def _beside(final: Path) -> Path:
    """A temporary name beside a folder or a file; leftovers of such a name may be removed."""
    return final.parent / f"{_PARTIAL}{final.name}-{uuid.uuid4().hex[:8]}"


def _take_place(partial: Path, final: Path) -> None:
    """Rename ``partial`` to ``final``; an existing ``final`` is moved away first, then removed."""
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
    """Flush every file to the disk, before the folder is renamed."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


@contextmanager
def locked(final: Path) -> Iterator[None]:
    """Hold a folder's inter-process lock. The lock file is in the cache.

    Raises:
        ExportError: the lock file cannot be created.
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
    """Take the lock without waiting; yields ``False`` if another process holds it."""
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


def digest_of(key: Mapping[str, object]) -> str:
    """A short digest of a key, for a name."""
    text = json.dumps(key, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class ArtifactStore:
    """The cache of exports: one folder per key, made once."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    @classmethod
    def default(cls) -> "ArtifactStore":
        return cls(cache_folder() / "artifacts")

    def folder(self, label: str, key: Mapping[str, object]) -> Path:
        """The folder of a key, which may not exist yet. ``label`` makes its name readable."""
        return self.root / f"{label}-{digest_of(key)}"

    def get_or_make(
        self, label: str, key: Mapping[str, object], make: Callable[[Path], None]
    ) -> Path:
        """The folder of a key, made by ``make(empty_folder)`` if it does not exist yet.

        Of two processes that need the same folder, one makes it and the other waits.

        Raises:
            ExportError: the folder could not be made; nothing is left behind.
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
        """A folder for an engine's own cache, such as compiled programs.

        ``None`` if it cannot be written.
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
        """Remove every artifact and leftovers of killed processes; return the number of artifacts.

        Folders that another process is writing now stay.
        """
        removed = 0
        for path in sorted(self.root.glob("*")):
            partial = _PARTIAL_NAME.fullmatch(path.name)
            final = path if partial is None else path.with_name(partial[1])
            with _locked_if_free(final) as free:
                if not free or not path.exists():
                    continue
                # Rename it first, so that it is never seen with files missing.
                leaving = _beside(final)
                os.replace(path, leaving)
                shutil.rmtree(leaving, ignore_errors=True)
                removed += not path.name.startswith(".")
        with suppress(OSError):  # not empty, or does not exist
            self.root.rmdir()
        return removed
