"""Descriptions as JSON has them, and back: checked field by field against their dataclasses."""

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
    """A description as plain dicts, lists, texts and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_KIND: value.kind, **fields} if isinstance(value, LatentSpec) else fields
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_plain(kind: type[_T], data: Any) -> _T:
    """What ``to_plain`` made, as it was.

    Raises:
        TypeError: it is no object.
        ValueError: a field is missing, unknown or of another type; the message names it.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"an object was expected, not a {type(data).__name__}")
    try:
        return dacite.from_dict(kind, data, _CONFIG)
    except dacite.DaciteError as exc:
        raise ValueError(str(exc)) from exc
    except (TypeError, KeyError, AttributeError) as exc:  # a value of a kind that dacite trips over
        raise ValueError(f"{kind.__name__}: {exc}") from exc


def _latents(data: Any) -> LatentSpec:
    if isinstance(data, LatentSpec):
        return data
    if not isinstance(data, Mapping) or not isinstance(data.get(_KIND), str):
        raise TypeError("the latents are not described by an object with a kind")
    fields = {name: value for name, value in data.items() if name != _KIND}
    return from_plain(latents_class(data[_KIND]), fields)


_CONFIG = dacite.Config(type_hooks={LatentSpec: _latents}, cast=[tuple], strict=True)
