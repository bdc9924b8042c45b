"""Switches of backends and exporters: ``NAME=VALUE``."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from perfuse.errors import InputError

__all__ = ["Options", "read_options"]

#: Each switch with the values it takes; ``None`` for one that takes any.
Options: TypeAlias = Mapping[str, Sequence[str] | None]


def read_options(given: Mapping[str, str], known: Options, *, of: str) -> dict[str, str]:
    """Check switches against those that there are.

    Args:
        given: What a person wrote.
        known: The switches that there are.
        of: Whose they are, for the message: ``"The Core ML exporter"``.

    Raises:
        InputError: a switch or a value is unknown.
    """
    for name, value in given.items():
        if name not in known:
            raise InputError(
                f"{of} was given the option {name}; it has {', '.join(known) or 'none'}."
            )
        values = known[name]
        if values is not None and value not in values:
            raise InputError(
                f"{of} was given the option {name}={value}; it takes {', '.join(values)}."
            )
    return dict(given)
