"""Checks of guiders' settings."""

import math
import numbers

from perfuse.errors import InputError

__all__ = ["check_count", "check_fraction", "check_interval", "check_number"]


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


def check_count(name: str, value: object) -> None:
    """Raise ``InputError`` unless the value is a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise InputError(f"{name} must be a whole number of at least 0; got {value!r}.")


def check_interval(first: str, start: float, last: str, stop: float) -> None:
    """Raise ``InputError`` unless two fractions of the steps are an interval."""
    check_fraction(first, start)
    check_fraction(last, stop)
    if start > stop:
        raise InputError(
            f"Guidance was to run from {start} to {stop} of the steps; {first} must not be larger "
            f"than {last}."
        )
