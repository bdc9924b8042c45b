"""Any guider, at some steps alone."""

import dataclasses
from typing import Any

from perfuse.contract.guider import Guider
from perfuse.errors import InputError

__all__ = ["limited"]


def limited(guider: Guider, start: float, stop: float) -> Guider:
    """A guider that guides between two fractions of the steps, and never where it did not before.

    Raises:
        InputError: it has no fractions between which it guides.
    """
    if len(guider.branches) == 1:
        return guider  # there is nothing to leave out
    if not (hasattr(guider, "start") and hasattr(guider, "stop")):
        raise InputError(
            f"Guidance at some steps alone was asked for; {type(guider).__name__} has no start "
            "and stop. Use another guider, or leave out the transform that asked for it."
        )
    known: Any = guider
    start, stop = max(start, known.start), min(stop, known.stop)
    found: Guider = dataclasses.replace(known, start=min(start, stop), stop=stop)
    return found
