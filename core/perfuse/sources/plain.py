"""Descriptions to plain JSON values and back, checked field by field against the dataclasses."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import dacite

from perfuse.contract.latents import LatentSpec
from perfuse.models.registry import latents_class

__all__ = ["from_plain", "to_plain"]

_T = TypeVar("_T")
_KIND = "kind"


def to_plain(value: Any) -> Any:
    """A description as dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_KIND: value.kind, **fields} if isinstance(value, LatentSpec) else fields
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_plain(kind: type[_T], data: Any) -> _T:
    """The dataclass of type ``kind`` that ``to_plain`` made ``data`` from.

    Raises:
        TypeError: ``data`` is not a dict.
        ValueError: a field is missing, unknown or of another type; the message names it.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"an object was expected, not a {type(data).__name__}")
    try:
        return dacite.from_dict(kind, data, _CONFIG)
    except dacite.DaciteError as exc:
        raise ValueError(str(exc)) from exc
    except (TypeError, KeyError, AttributeError) as exc:  # a value that dacite does not expect
        raise ValueError(f"{kind.__name__}: {exc}") from exc


def _latents(data: Any) -> LatentSpec:
    if isinstance(data, LatentSpec):
        return data
    if not isinstance(data, Mapping) or not isinstance(data.get(_KIND), str):
        raise TypeError("the latents are not described by an object with a kind")
    fields = {name: value for name, value in data.items() if name != _KIND}
    return from_plain(latents_class(data[_KIND]), fields)


_CONFIG = dacite.Config(type_hooks={LatentSpec: _latents}, cast=[tuple], strict=True)
