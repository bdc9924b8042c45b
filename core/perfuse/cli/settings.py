"""``perfuse.toml``: defaults for the command line, overridden by the environment and by flags."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from perfuse.cli.task_options import task_options
from perfuse.errors import ConfigError
from perfuse.sources.files import read_toml

__all__ = ["SETTINGS", "Configured", "known_settings", "read_settings"]

SETTINGS = "perfuse.toml"
_CALLED = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of texts",
}
_KNOWN = {
    "model": str,
    "revision": str,
    "variant": str,
    "scheduler_from": str,
    "offline": bool,
    "backend": str,
    "precision": str,
    "scheduler": str,
    "transforms": list,
    "options": list,
}


def known_settings(*, plugins: bool = False) -> dict[str, type]:
    """The settings of ``perfuse.toml`` and their types, including inputs of the plugins' tasks."""
    options = {option.parameter: option.kind for option in task_options(plugins=plugins)}
    return {**_KNOWN, **{name: str if kind is Path else kind for name, kind in options.items()}}


class Configured(click.Command):
    """A command whose options can also be set in ``perfuse.toml``."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if not {"-h", "--help"} & set(args):  # help works even with a broken file
            extra["default_map"] = read_settings(
                _working_folder(), known_settings, more=lambda: known_settings(plugins=True)
            )
        return super().make_context(info_name, args, parent, **extra)


def _working_folder() -> Path | None:
    """The working folder; ``None`` if it was removed, or may not be read."""
    try:
        return Path.cwd()
    except OSError:
        return None


def read_settings(
    folder: Path | None,
    known: Callable[[], Mapping[str, type]],
    *,
    more: Callable[[], Mapping[str, type]] = dict,
) -> dict[str, Any]:
    """The ``[pipeline]`` table of the nearest ``perfuse.toml``, from a folder upwards, or empty.

    Args:
        folder: Where to begin to look; ``None`` reads no file.
        known: Gives the settings that there are, each with its type; called where there is a file.
        more: Gives others, that take longer to find; called where the file has one not known.

    Raises:
        ConfigError: the file does not parse, or has an unknown setting.
    """
    folders = () if folder is None else (folder, *folder.parents)
    path = next((p / SETTINGS for p in folders if os.path.isfile(p / SETTINGS)), None)
    if path is None:
        return {}
    data = read_toml(path, error=ConfigError, remedy="Repair or remove it.")
    settings = data.get("pipeline", {})
    others = sorted(set(data) - {"pipeline"})
    if others:
        raise ConfigError(
            f"{path} has {', '.join(others)}; only [pipeline] is known. Remove the rest."
        )
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} sets pipeline to {settings!r}; write a table, [pipeline].")
    types = known()
    if not settings.keys() <= types.keys():
        types = {**types, **more()}
    for name, value in settings.items():
        if name not in types:
            raise ConfigError(
                f"{path} sets {name!r}; [pipeline] may set {', '.join(sorted(types))}."
            )
        wanted = types[name]
        fits = isinstance(value, int | float) if wanted is float else isinstance(value, wanted)
        fits = fits and (wanted is not list or all(isinstance(one, str) for one in value))
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise ConfigError(f"{path} sets {name} to {value!r}; it takes {_CALLED[wanted]}.")
    return settings
