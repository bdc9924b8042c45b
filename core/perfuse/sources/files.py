"""Reading and writing files: one function to open, one for JSON, one for TOML, one to write.

Only regular files are read, so that a pipe or a device never blocks the process. Files are written
atomically: complete or not at all, even if the process is killed.
"""

import json
import os
import stat
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from perfuse.errors import CheckpointError, InputError, PerfuseError
from perfuse.sources.unfinished import undone

__all__ = [
    "check_folder",
    "open_file",
    "read_bytes",
    "read_json",
    "read_text",
    "read_toml",
    "replacing",
    "shown",
    "user_path",
    "write_file",
    "write_json",
]

#: The largest JSON file to read, in bytes. The largest known, a tokenizer's, has about 30 MB.
_LARGEST_JSON = 256 * 1024 * 1024
#: The longest name of a file, and the longest path, that systems take, in bytes.
_NAME, _PATH = 255, 4096
#: The longest path to show in a message, in characters.
_SHOWN = 160
_RIGHTS = {"read": "read", "written": "write"}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def shown(path: str | bytes | os.PathLike[str]) -> str:
    """A path for a message: unprintable characters are escaped, long paths are shortened."""
    text = os.fsdecode(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _SHOWN else f"{text[:80]}…{text[-60:]}"


def user_path(given: str | os.PathLike[str]) -> Path:
    """The path that a user named, ``~`` replaced by the home folder where that is known.

    Raises:
        InputError: no file can have this name: it is too long, or holds NUL or half a character.
    """
    path = Path(os.path.expanduser(given))
    try:
        encoded = os.fsencode(path)
    except ValueError as exc:
        raise InputError(f"{shown(path)} was named; no file can have that name: {exc}.") from exc
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if b"\0" in encoded or longest > _NAME or len(encoded) > _PATH:
        why = "it holds a NUL" if b"\0" in encoded else f"it has {len(encoded)} bytes"
        raise InputError(f"{shown(path)} was named; no file can have that name: {why}.")
    return path


def check_folder(flag: str, path: Path) -> None:
    """Fail before the work, not after it, where there is no folder for a file that was asked for.

    Raises:
        InputError: it names the flag.
    """
    folder = user_path(path).parent
    if not os.path.isdir(folder):
        raise InputError(
            f"{flag} {shown(path)} was asked for; there is no folder {shown(folder)}. Make it."
        )


def open_file(
    path: str | os.PathLike[str], *, error: type[PerfuseError] = CheckpointError, remedy: str = ""
) -> BufferedReader:
    """Open a regular file to read its bytes.

    Args:
        path: The file; links are followed.
        error: The class of error to raise.
        remedy: What the user can do about it, as a sentence.

    Raises:
        PerfuseError: of class ``error``: the file is missing, not regular, or cannot be opened.
    """
    try:
        # Check before opening, because opening a device may act on it, and again afterwards.
        _check_regular(os.stat(path))
        # O_NONBLOCK: if it has become a pipe, opening it does not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags)
        try:
            _check_regular(os.fstat(handle))
        except OSError:
            os.close(handle)
            raise
    except (OSError, ValueError) as exc:  # ValueError: a name with NUL, or not valid Unicode
        raise _refused(path, "read", exc, error, remedy) from exc
    return os.fdopen(handle, "rb")


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((kind for is_one, kind in _KINDS if is_one(found.st_mode)), "something else")
        raise OSError(None, f"it is {kind}, not a file")


def _refused(
    path: str | os.PathLike[str],
    what: str,
    exc: Exception,
    error: type[PerfuseError],
    remedy: str,
) -> PerfuseError:
    why = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    if isinstance(exc, FileNotFoundError) and what == "read":
        why = "it is missing"
    elif isinstance(exc, PermissionError):
        remedy = f"Give this user the right to {_RIGHTS[what]} it."
    return error(f"{shown(path)} cannot be {what}: {why}. {remedy}".rstrip())


def read_bytes(
    path: str | os.PathLike[str], *, error: type[PerfuseError] = CheckpointError, remedy: str = ""
) -> bytes:
    """The bytes of a regular file; raises as `open_file` does."""
    with open_file(path, error=error, remedy=remedy) as file:
        try:
            return file.read()
        except OSError as exc:
            raise _refused(path, "read", exc, error, remedy) from exc


def read_text(
    path: str | os.PathLike[str], *, error: type[PerfuseError] = CheckpointError, remedy: str = ""
) -> str:
    """The UTF-8 text of a regular file, line ends unchanged; raises as `open_file` does."""
    content = read_bytes(path, error=error, remedy=remedy)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise error(
            f"{shown(path)} is not UTF-8 text: byte {exc.start} is {content[exc.start]:#04x}. "
            f"{remedy}".rstrip()
        ) from exc


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        ValueError: it has a name twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it names {shown(name)} twice")
        found[name] = value
    return found


def read_json(
    path: str | os.PathLike[str],
    *,
    error: type[PerfuseError] = CheckpointError,
    remedy: str = "",
    once: bool = False,
) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        error: What to raise.
        remedy: What to do, at the end of a message.
        once: Whether no object in it may have two values of one name. By itself JSON takes the last.

    Raises:
        PerfuseError: of class ``error``: the file cannot be read, is not JSON (the message names
            line and column), does not hold an object, or names something twice.
    """
    with open_file(path, error=error, remedy=remedy) as file:
        size = os.fstat(file.fileno()).st_size
    if size > _LARGEST_JSON:
        raise error(
            f"{shown(path)} is too large to be read as JSON: {size} bytes. {remedy}".rstrip()
        )
    text = read_text(path, error=error, remedy=remedy)
    try:
        value = json.loads(text, object_pairs_hook=_once if once else None)
    except json.JSONDecodeError as exc:
        raise error(
            f"{shown(path)}, line {exc.lineno}, column {exc.colno}, is not JSON: {exc.msg}. "
            f"{remedy}".rstrip()
        ) from exc
    except RecursionError as exc:
        raise error(f"{shown(path)} is not JSON: it is nested too deep. {remedy}".rstrip()) from exc
    except ValueError as exc:  # a number of thousands of digits
        raise error(f"{shown(path)} is not JSON: {exc}. {remedy}".rstrip()) from exc
    if not isinstance(value, dict):
        raise error(
            f"{shown(path)} holds a JSON {type(value).__name__}; an object was expected. "
            f"{remedy}".rstrip()
        )
    return value


def read_toml(
    path: str | os.PathLike[str], *, error: type[PerfuseError] = CheckpointError, remedy: str = ""
) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        PerfuseError: of class ``error``: the file cannot be read, or is not TOML.
    """
    text = read_text(path, error=error, remedy=remedy)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # numbers of thousands of digits, deep nesting
        raise error(f"{shown(path)} is not TOML: {exc}. {remedy}".rstrip()) from exc


@contextmanager
def replacing(
    path: str | os.PathLike[str],
    *,
    error: type[PerfuseError] = InputError,
    remedy: str = "Choose a file in a folder that is there and can be written.",
) -> Iterator[Path]:
    """A temporary file beside ``path`` that replaces it when the ``with`` block succeeds.

    An existing file stays until then; if ``path`` is a link, the file that it links to is replaced.
    The new file keeps the old one's permissions; without an old one, the process's umask decides.

    Raises:
        PerfuseError: of class ``error``: the file cannot be written, or ``path`` exists and is not
            a regular file.
    """
    partial = None
    try:
        target, mode = _place(path)
        partial = target.parent / f".{target.name[:60]}-{uuid.uuid4().hex[:8]}.partial"
        with undone(partial.unlink):
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            mode = stat.S_IMODE(os.stat(partial).st_mode)
            yield partial
            # The block may have put another file there, as safetensors does.
            os.chmod(partial, mode)
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, target)
    except PerfuseError:
        raise
    except (OSError, ValueError) as exc:
        raise _refused(path, "written", exc, error, remedy) from exc
    finally:
        if partial is not None:
            with suppress(OSError):  # it was renamed already, or never created
                partial.unlink()


def _place(path: str | os.PathLike[str]) -> tuple[Path, int]:
    """The path to write, with links followed, and the file mode to give it."""
    target = Path(os.path.realpath(path))
    if not os.path.lexists(target):
        return target, 0o666
    found = os.stat(target)
    _check_regular(found)
    return target, stat.S_IMODE(found.st_mode)


def write_file(
    path: str | os.PathLike[str],
    content: bytes | str,
    *,
    error: type[PerfuseError] = InputError,
    remedy: str = "Choose a file in a folder that is there and can be written.",
) -> None:
    """Write a whole file as `replacing` does; text as UTF-8, line ends unchanged."""
    with replacing(path, error=error, remedy=remedy) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(
    path: str | os.PathLike[str],
    value: object,
    *,
    indent: int | None = 1,
    error: type[PerfuseError] = InputError,
    remedy: str = "Choose a file in a folder that is there and can be written.",
) -> None:
    """Write a value as JSON with a final newline, as `replacing` does."""
    write_file(path, json.dumps(value, indent=indent) + "\n", error=error, remedy=remedy)
