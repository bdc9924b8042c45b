"""Arrays with the same numbers that lie in memory in other ways."""

import mmap
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["LAYOUTS"]


def _reversed(array: Any) -> Any:
    return np.ascontiguousarray(array[..., ::-1])[..., ::-1] if array.ndim else array


def _apart(array: Any) -> Any:
    """With a gap after each number."""
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


def _read_only(array: Any) -> Any:
    """In memory that the system lets nobody write to: whoever does ends the process."""
    with tempfile.TemporaryFile() as file:
        file.write(np.ascontiguousarray(array).data)
        file.flush()
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(memory, array.dtype).reshape(array.shape)


def _offset(array: Any) -> Any:
    """Beginning where no vector register is filled from: one number beyond a page's beginning."""
    memory = np.empty(array.size + 1, array.dtype)
    memory[1:] = array.ravel()
    return memory[1:].reshape(array.shape)


#: Those that ``cases.trials`` names.
LAYOUTS: Mapping[str, Callable[[Any], Any]] = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "negative-strides": _reversed,
    "strided": _apart,
    "read-only": _read_only,
    "offset": _offset,
}
