"""Settings written as text, ``NAME:key=value,key=value``, read as the fields of a dataclass."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from perfuse.errors import InputError

__all__ = ["read_fields", "split_named"]

_T = TypeVar("_T")
_READERS: Mapping[Any, Any] = {
    int: int,
    float: float,
    str: str,
    bool: {"true": True, "false": False}.__getitem__,
    tuple[int, ...]: lambda text: tuple(int(part) for part in text.split("+")),
    tuple[float, ...]: lambda text: tuple(float(part) for part in text.split("+")),
    tuple[str, ...]: lambda text: tuple(text.split("+")),
}


def split_named(text: str, *, what: str) -> tuple[str, dict[str, str]]:
    """The name and the settings of ``NAME:key=value,key=value``.

    Args:
        text: What a person wrote.
        what: What is named, for the message: ``"Transform"``.

    Raises:
        InputError: a setting has no value, or stands there twice.
    """
    name, colon, rest = text.partition(":")
    given: dict[str, str] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not equals or key.strip() in given:
            raise InputError(
                f"{what} {text!r} was asked for; options are written NAME:key=value,key=value."
            )
        given[key.strip()] = value.strip()
    return name, given


def read_fields(kind: type[_T], given: Mapping[str, str], *, of: str) -> _T:
    """An instance of a dataclass, each text parsed as its field's type.

    Args:
        kind: A dataclass of numbers, texts, truth values and tuples, written ``1+2+3``.
        given: Field to text.
        of: Whose settings they are, for the message: ``"Transform 'thirds'"``.

    Raises:
        InputError: there is no such field, or a text is not of its type.
    """
    hints = typing.get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise InputError(
                f"{of} was given the option {name}; it has {', '.join(known) or 'none'}."
            )
    return kind(**{name: _read(name, known[name], text, of) for name, text in given.items()})


def _read(name: str, kind: Any, text: str, of: str) -> Any:
    several = typing.get_origin(kind) in (types.UnionType, typing.Union)
    choices = [one for one in typing.get_args(kind) if one is not type(None)] if several else [kind]
    for choice in choices:
        try:
            return _READERS[choice](text)
        except (ValueError, KeyError):
            continue
    wanted = " or ".join(_named(choice) for choice in choices)
    raise InputError(f"{of} was given {name}={text}; {name} is of type {wanted}.")


def _named(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"{_named(typing.get_args(kind)[0])}+{_named(typing.get_args(kind)[0])}"
    return getattr(kind, "__name__", str(kind))
