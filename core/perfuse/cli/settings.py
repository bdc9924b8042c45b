"""``perfuse.toml``: defaults for the command line. A flag beats the environment, which beats it."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse.errors import ConfigError

__all__ = ["SETTINGS", "read_settings"]

SETTINGS = "perfuse.toml"
_CALLED = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def read_settings(folder: Path, known: Mapping[str, type]) -> dict[str, Any]:
    """The ``[pipeline]`` table of the nearest ``perfuse.toml``, from a folder upwards; or nothing.

    Args:
        folder: Where to begin to look.
        known: The settings that there are, each with its type.

    Raises:
        ConfigError: the file does not parse, or holds a setting that there is not.
    """
    path = next((p / SETTINGS for p in (folder, *folder.parents) if (p / SETTINGS).is_file()), None)
    if path is None:
        return {}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path} was to be read as TOML: {exc}. Mend or remove it.") from exc
    settings = data.get("pipeline", {})
    others = sorted(set(data) - {"pipeline"})
    if others:
        raise ConfigError(f"{path} has {', '.join(others)}; it may have [pipeline] alone.")
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} sets pipeline to {settings!r}; write a table, [pipeline].")
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(
                f"{path} sets {name!r}; [pipeline] may set {', '.join(sorted(known))}."
            )
        wanted = known[name]
        fits = isinstance(value, int | float) if wanted is float else isinstance(value, wanted)
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise ConfigError(f"{path} sets {name} to {value!r}; it takes {_CALLED[wanted]}.")
    return settings
