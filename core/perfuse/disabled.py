"""Plugins that a person has switched off: a small file in the user's configuration folder.

Nothing here imports a plugin, so that one which takes the process down can be switched off.
"""

import json
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

from perfuse.errors import ConfigError, InputError

__all__ = [
    "config_folder",
    "distribution_of",
    "is_named",
    "key",
    "key_of",
    "read_disabled",
    "switch",
]

_FILE = "plugins.json"


def config_folder() -> Path:
    """Where what a person has set lives: ``PERFUSE_CONFIG``, or the platform's folder for it."""
    configured = os.environ.get("PERFUSE_CONFIG")
    if configured:
        return Path(configured).expanduser()
    import platformdirs

    return platformdirs.user_config_path("perfuse", appauthor=False)


def distribution_of(entry: EntryPoint) -> tuple[str, str]:
    """The name and the version of the distribution that brings an entry point."""
    if entry.dist is None:
        return "?", "?"
    return entry.dist.name, entry.dist.version


def key_of(entry: EntryPoint) -> str:
    """``DISTRIBUTION:NAME``, which no other entry point of the environment has."""
    return key(distribution_of(entry)[0], entry.name)


def key(distribution: str, name: str) -> str:
    """The same of an entry point that is not at hand."""
    return f"{_canonical(distribution)}:{name}"


def is_named(entry: EntryPoint, names: Iterable[str]) -> bool:
    """Whether an entry point, or the distribution that brings it, is among the names."""
    return any(_is_of(key_of(entry), name) for name in names)


def _is_of(whole: str, name: str) -> bool:
    distribution, _, entry = whole.partition(":")
    return name in (entry, whole) or _canonical(name) == distribution


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()  # PEP 503


def read_disabled() -> frozenset[str]:
    """The keys of what is switched off; none where there is no file.

    Raises:
        ConfigError: the file is damaged.
    """
    path = config_folder() / _FILE
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))["disabled"]
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError(f"disabled is {keys!r}, not a list of names")
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise ConfigError(
            f"{path} was to say which plugins are disabled; it cannot be read: {exc!r}. "
            "Remove it, and disable them again: perfuse plugin disable NAME."
        ) from exc
    return frozenset(keys)


def switch(name: str, installed: Sequence[EntryPoint], *, on: bool) -> list[str]:
    """Switch an entry point, or every one of a distribution, and write that down.

    Returns:
        The keys of what was switched.

    Raises:
        InputError: nothing of this name is installed.
        ConfigError: the file is damaged, or cannot be written.
    """
    import filelock

    folder = config_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".{_FILE}.lock"):
            before = read_disabled()
            known = {key_of(entry) for entry in installed}
            # What is off can be switched on after it was uninstalled, too.
            keys = sorted(k for k in (known | before if on else known) if _is_of(k, name))
            if not keys:
                listed = ", ".join(f"{e.name} (of {distribution_of(e)[0]})" for e in installed)
                raise InputError(
                    f"Plugin {name!r} was named; installed: {listed or 'none'}. Name one of "
                    "these, or a distribution."
                )
            _write(folder, before.difference(keys) if on else before.union(keys))
    except OSError as exc:
        raise ConfigError(
            f"{folder / _FILE} was to be written; the system said: {exc.strerror or exc}. Make "
            "the folder writable, or name another one in PERFUSE_CONFIG."
        ) from exc
    return keys


def _write(folder: Path, keys: Iterable[str]) -> None:
    """Put a whole file in the place of the one that is there, or leave that one."""
    partial = folder / f".{_FILE}-{uuid.uuid4().hex[:8]}"
    try:
        partial.write_text(json.dumps({"disabled": sorted(keys)}) + "\n", encoding="utf-8")
        os.replace(partial, folder / _FILE)
    finally:
        partial.unlink(missing_ok=True)
