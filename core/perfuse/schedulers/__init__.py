"""Schedulers: the table of a sampler, and Diffusers' classes as its face.

>>> from perfuse.schedulers import scheduler_class
>>> scheduler_class("euler")().schedule(8).timesteps.shape
(8,)

A scheduler is one file of this folder with one public class ``…Scheduler``. Which there are is read
from the files' text: importing this package imports no scheduler, each is loaded when its name is
first used. On the command line a scheduler has its file's name, with hyphens, and those that the
file lists as ``NAMES``.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from perfuse import _diffusers
from perfuse.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from .align_your_steps import AysSchedules as AysSchedules
    from .base import Scheduler as Scheduler
    from .sigmas import calculate_shift as calculate_shift
    from .table import Schedule as Schedule

    SCHEDULERS: Mapping[str, str]
    SHORT_NAMES: Mapping[str, str]

_CLASS = re.compile(r"^class ([A-Z]\w*Scheduler)\b", re.MULTILINE)
_NAMES = re.compile(r"^NAMES = (\(.*?\))$", re.MULTILINE | re.DOTALL)
_OTHERS = {"Schedule": "table", "Scheduler": "base", "calculate_shift": "sigmas"}


@dataclass(frozen=True, kw_only=True)
class _File:
    """The declarations in a scheduler's file."""

    module: str
    class_name: str
    short_names: tuple[str, ...]


def _read(folder: Path, package: str) -> Iterator[_File]:
    """The schedulers of a folder, from the text of its files; nothing is imported."""
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        found, names = _CLASS.search(text), _NAMES.search(text)
        if found is not None:
            more = () if names is None else ast.literal_eval(names[1])
            yield _File(
                module=f"{package}.{path.stem}",
                class_name=found[1],
                short_names=(path.stem.replace("_", "-"), *more),
            )


@functools.cache
def _files() -> tuple[_File, ...]:
    return tuple(_read(Path(__file__).parent, __name__))


def __getattr__(name: str) -> Any:
    match name:
        case "SCHEDULERS":  # class name to where it is
            return MappingProxyType({f.class_name: f"{f.module}:{f.class_name}" for f in _files()})
        case "SHORT_NAMES":  # the names that a person types to class names
            return MappingProxyType({s: f.class_name for f in _files() for s in f.short_names})
        case "__all__":
            return sorted((*_OTHERS, *_LOOKUPS, *__getattr__("SCHEDULERS")))
    if name in _OTHERS:
        return getattr(importlib.import_module(f"{__name__}.{_OTHERS[name]}"), name)
    if name == "AysSchedules":  # numbers, which are no name of the package above
        return importlib.import_module(f"{__name__}.align_your_steps").AysSchedules
    if name.endswith("Scheduler") and name in __getattr__("SCHEDULERS"):
        return scheduler_class(name)
    return _diffusers.borrowed(__name__, name)


_LOOKUPS = ("SCHEDULERS", "SHORT_NAMES", "scheduler_class", "scheduler_from_config")


def __dir__() -> list[str]:
    names: list[str] = __getattr__("__all__")
    return names


def scheduler_class(name: str) -> type[Scheduler]:
    """The class of a name, either Diffusers' or a short one such as ``euler-ancestral``.

    Raises:
        InputError: there is none of this name.
    """
    short: Mapping[str, str] = __getattr__("SHORT_NAMES")
    reference = _find(short.get(name.lower().replace("_", "-"), name))
    if reference is None:
        raise InputError(f"Scheduler {name!r} is not known. Use one of: {', '.join(short)}.")
    module, attribute = reference.split(":")
    found: type[Scheduler] = getattr(importlib.import_module(module), attribute)
    return found


def _find(name: str) -> str | None:
    """Where a class is: one of ours, or one that a plugin brings."""
    ours: Mapping[str, str] = __getattr__("SCHEDULERS")
    if name in ours:
        return ours[name]
    from perfuse.plugins.host import host

    return host().schedulers().get(name)


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler of a checkpoint's parsed ``scheduler_config.json``.

    Raises:
        CheckpointError: its ``_class_name`` is missing or is none of those in ``SCHEDULERS``.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or _find(name) is None:
        raise CheckpointError(
            f"The checkpoint's scheduler is {name!r}, which perfuse does not have. Known: "
            f"{', '.join(__getattr__('SCHEDULERS'))}. Set _class_name in scheduler_config.json to "
            "one of these."
        )
    return scheduler_class(name).from_config(config)
