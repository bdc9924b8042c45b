"""Checks of guiders' settings."""

import math
import numbers

from perfuse.errors import InputError

__all__ = ["check_fraction", "check_number"]


def check_number(name: str, value: object) -> float:
    """The value as a float; ``InputError`` unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be a number; got {value!r}.")
    if not math.isfinite(value):
        raise InputError(f"{name} must be a finite number; got {value!r}.")
    return float(value)


def check_fraction(name: str, value: object) -> None:
    """Raise ``InputError`` unless the value is a number between 0 and 1."""
    if not 0.0 <= check_number(name, value) <= 1.0:
        raise InputError(f"{name} must be between 0 and 1; got {value!r}.")
