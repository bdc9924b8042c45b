"""Options of backends and exporters: ``NAME=VALUE``."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from perfuse.errors import InputError

__all__ = ["Options", "read_options"]

#: Option name to its values: a list of words, a range of whole numbers, or ``None`` for any text.
Options: TypeAlias = Mapping[str, Sequence[str] | range | None]


def read_options(given: Mapping[str, object], known: Options, *, of: str) -> dict[str, str]:
    """Check options against the known ones.

    Args:
        given: Option name to value: text, a number or a bool.
        known: The options that exist.
        of: Their owner, for the error message: ``"The Core ML exporter"``.

    Returns:
        Option name to value as text; bools as ``"true"`` and ``"false"``.

    Raises:
        InputError: an option or its value is unknown.
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
