"""The config of a scheduler: read-only, with the keys of other classes kept aside.

Swapping one scheduler for another follows Diffusers: a setting that was left at its default is not
carried over, a setting that the new class does not know is kept for the class after it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perfuse.errors import CheckpointError

__all__ = ["CONFIG_NAME", "Config", "merge_config", "read_config", "split_config", "write_config"]

CONFIG_NAME = "scheduler_config.json"
_DEFAULTED = "_use_default_values"


class Config(Mapping[str, Any]):
    """A mapping whose keys can be read as attributes and cannot be changed."""

    __slots__ = ("_values",)
    _values: dict[str, Any]

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, key: str) -> Any:
        if key == "_values" or key not in self._values:  # a copy asks before it is filled
            raise AttributeError(f"This config has no {key!r}.")
        return self._values[key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(
            f"A config cannot be changed (asked: {key} = {value!r}). "
            f"Make a scheduler with X.from_config(scheduler.config, {key}=...)."
        )

    def __reduce__(self) -> tuple[type[Config], tuple[dict[str, Any]]]:
        return Config, (self._values,)

    def __repr__(self) -> str:
        return f"Config({self._values!r})"


def split_config(
    config: Mapping[str, Any], known: set[str], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings for a class that knows ``known``, and the rest, to be kept aside."""
    defaulted = {*config.get(_DEFAULTED, ()), _DEFAULTED}
    given = {key: value for key, value in config.items() if key not in defaulted}
    settings = {key: value for key, value in {**given, **overrides}.items() if key in known}
    return settings, {key: value for key, value in given.items() if key not in settings}


def merge_config(
    class_name: str, settings: Mapping[str, Any], given: set[str], aside: Mapping[str, Any]
) -> Config:
    """The config to show: every setting, which of them are defaults, and what is kept aside."""
    defaulted = [key for key in settings if key not in given]
    marks = {_DEFAULTED: defaulted} if defaulted else {}
    return Config({**settings, **marks, **aside, "_class_name": class_name})


def read_config(folder: str | os.PathLike[str], subfolder: str | None = None) -> dict[str, Any]:
    """The parsed ``scheduler_config.json`` of a local folder.

    Raises:
        CheckpointError: there is no such file, or it is not a JSON object.
    """
    base = Path(folder) if subfolder is None else Path(folder) / subfolder
    path = base if base.is_file() else base / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise CheckpointError(
            f"No scheduler config could be read at {path}: {exc.strerror or exc}. Name the folder "
            f"that holds {CONFIG_NAME}; in a pipeline's folder that is subfolder='scheduler'."
        ) from exc
    except ValueError as exc:
        raise CheckpointError(f"{path} is not JSON: {exc}. Get the file again.") from exc
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(config).__name__} where an object of settings belongs. "
            "Get the file again."
        )
    return config


def write_config(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> Path:
    """Write ``scheduler_config.json``, whole or not at all."""
    target = Path(folder) / CONFIG_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = {key: value for key, value in config.items() if key != _DEFAULTED}
    text = json.dumps(shown, indent=2, sort_keys=True, default=_plain) + "\n"
    handle, name = tempfile.mkstemp(prefix=f".{CONFIG_NAME}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
