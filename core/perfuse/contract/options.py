"""Switches of backends and exporters: ``NAME=VALUE``."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from perfuse.errors import InputError

__all__ = ["Options", "read_options"]

#: Each switch with the values that it takes: words, a range of whole numbers, or ``None`` for any text.
Options: TypeAlias = Mapping[str, Sequence[str] | range | None]


def read_options(given: Mapping[str, object], known: Options, *, of: str) -> dict[str, str]:
    """Check switches against those that there are.

    Args:
        given: What a person wrote; from Python, numbers and truth values are taken, too.
        known: The switches that there are.
        of: Whose they are, for the message: ``"The Core ML exporter"``.

    Returns:
        The switches as text; truth values as ``"true"`` and ``"false"``.

    Raises:
        InputError: a switch or a value is unknown.
    """
    options = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(
                f"{of} was given the option {name}; it has {', '.join(known) or 'none'}."
            )
        options[name] = text = str(value).lower() if isinstance(value, bool) else str(value)
        if not _takes(known[name], text):
            raise InputError(
                f"{of} was given the option {name}={text}; it takes {_values(known[name])}."
            )
    return options


def _takes(values: Sequence[str] | range | None, text: str) -> bool:
    if isinstance(values, range):
        return text.isdecimal() and int(text) in values
    return values is None or text in values


def _values(values: Sequence[str] | range | None) -> str:
    if isinstance(values, range):
        return f"a whole number from {values.start} to {values.stop - 1}"
    return ", ".join(values or ())
