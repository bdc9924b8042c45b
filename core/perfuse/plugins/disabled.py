"""Disabled plugins: a small file in the user's configuration folder.

Nothing here imports a plugin, so that even one that crashes the process can be disabled.
"""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from perfuse.errors import ConfigError, InputError
from perfuse.sources.files import read_json, shown, user_path, write_json

__all__ = ["config_folder", "is_named", "key", "read_disabled", "switch"]

_FILE = "plugins.json"
_AGAIN = "Remove it, and disable them again: perfuse plugin disable NAME."
_REMEDY = "Make the folder writable, or name another one in PERFUSE_CONFIG."


def config_folder() -> Path:
    """The user's configuration folder: ``PERFUSE_CONFIG``, or the platform's default."""
    configured = os.environ.get("PERFUSE_CONFIG")
    if configured:
        return user_path(configured)
    import platformdirs

    return platformdirs.user_config_path("perfuse", appauthor=False)


def key(distribution: str, name: str) -> str:
    """``DISTRIBUTION:NAME`` of an entry point, unique in an environment."""
    return f"{_canonical(distribution)}:{name}"


def is_named(whole: str, names: Iterable[str]) -> bool:
    """Whether the names contain a key, or the name of its entry point or distribution."""
    return any(_is_of(whole, name) for name in names)


def _is_of(whole: str, name: str) -> bool:
    distribution, _, entry = whole.partition(":")
    return name in (entry, whole) or _canonical(name) == distribution


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()  # PEP 503


def read_disabled() -> frozenset[str]:
    """The keys of the disabled plugins; none if there is no file.

    Raises:
        ConfigError: the file is damaged.
    """
    path = config_folder() / _FILE
    if not os.path.lexists(path):
        return frozenset()
    keys = read_json(path, error=ConfigError, remedy=_AGAIN).get("disabled")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ConfigError(
            f"{shown(path)} was read for the disabled plugins; it holds no list of names, "
            f'{{"disabled": […]}}. {_AGAIN}'
        )
    return frozenset(keys)


def switch(name: str, installed: Collection[str], *, on: bool) -> list[str]:
    """Enable or disable a plugin, or every plugin of a distribution, and save that.

    Args:
        name: The plugin's name, its distribution's name, or its key.
        installed: The keys of the installed plugins.
        on: Whether to enable it.

    Returns:
        The keys of the plugins that were enabled or disabled.

    Raises:
        InputError: nothing of this name is installed.
        ConfigError: the file is damaged, or cannot be written.
    """
    import filelock

    folder = config_folder()
    path = folder / _FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".{_FILE}.lock"):
            before = read_disabled()
            # A disabled plugin can be enabled even after it was uninstalled.
            known = before.union(installed) if on else installed
            keys = sorted(whole for whole in known if _is_of(whole, name))
            if not keys:
                raise InputError(
                    f"Plugin {name!r} was named; installed: {', '.join(installed) or 'none'}. "
                    "Name one of these, or what is before or after its colon."
                )
            after = before.difference(keys) if on else before.union(keys)
            write_json(path, {"disabled": sorted(after)}, error=ConfigError, remedy=_REMEDY)
    except OSError as exc:
        raise ConfigError(
            f"{shown(path)} was to be written; the system said: {exc.strerror or exc}. {_REMEDY}"
        ) from exc
    return keys
