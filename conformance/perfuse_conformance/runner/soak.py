"""Many calls of one program, in a drawn order and drawn layouts: what the hundredth one gives."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from perfuse.backend import Program

__all__ = ["LAYOUTS", "Soaked", "resident", "soak"]

Arrays = dict[str, Any]

#: How many calls are made, unless they take longer than so many seconds.
_CALLS, _SECONDS = 500, 20.0
#: From this call on memory is expected to stay.
_SETTLED = 100


@dataclass(frozen=True, kw_only=True)
class Soaked:
    """What many calls showed."""

    calls: int
    #: How far the worst answer is from the first one to the same inputs, over its spread.
    miss: float
    #: Which call that was, and how its inputs lay in memory.
    at: int
    layout: str
    #: Bytes that the process grew by after the first calls; ``None`` where the system does not tell.
    grown: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _fortran(array: Any) -> Any:
    return np.asfortranarray(array)


def _reversed(array: Any) -> Any:
    """The same numbers with negative strides."""
    return np.ascontiguousarray(array[..., ::-1])[..., ::-1] if array.ndim else array


def _read_only(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _apart(array: Any) -> Any:
    """The same numbers with a gap after each."""
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


LAYOUTS: Mapping[str, Callable[[Any], Any]] = {
    "contiguous": np.ascontiguousarray,
    "Fortran": _fortran,
    "negative strides": _reversed,
    "read-only": _read_only,
    "strided": _apart,
}


def soak(
    program: Program, inputs: Sequence[Arrays], seed: int, taken: Callable[[Any], Arrays]
) -> Soaked:
    """Call a program many times.

    Args:
        program: What to call.
        inputs: What to call it with; each is asked again and again.
        seed: Draws the order and the layouts.
        taken: Copies what a call returned.
    """
    random = np.random.default_rng(seed)
    first = [taken(program(**{n: a.copy() for n, a in given.items()})) for given in inputs]
    worst, at, layout, begun, settled = 0.0, 0, "contiguous", time.monotonic(), None
    made = 0
    while made < _CALLS and time.monotonic() - begun < _SECONDS:
        made += 1
        which, how = int(random.integers(len(inputs))), str(random.choice(list(LAYOUTS)))
        given = {name: LAYOUTS[how](array) for name, array in inputs[which].items()}
        miss = _miss(taken(program(**given)), first[which])
        if miss > worst:
            worst, at, layout = miss, made, how
        if made == _SETTLED:
            settled = resident()
    now = resident() if settled is not None else None
    grown = now - settled if now is not None and settled is not None else None
    return Soaked(calls=made, miss=worst, at=at, layout=layout, grown=grown)


def _miss(found: Arrays, first: Arrays) -> float:
    """The largest distance of any output, over the spread of the first answer."""
    if found.keys() != first.keys():
        return float("inf")
    return max((_distance(found[name], was) for name, was in first.items()), default=0.0)


def _distance(found: Any, was: Any) -> float:
    if found.shape != was.shape or not np.isfinite(found).all():
        return float("inf")
    spread = float(np.std(was, dtype=np.float64)) or 1.0
    return float(np.abs(found.astype(np.float64) - was).max()) / spread


def resident() -> int | None:
    """Bytes of memory that this process holds now, where the system tells."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
