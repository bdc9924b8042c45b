"""The tensors of a safetensors file as numpy arrays, read into memory without torch."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfuse.errors import WeightsError
from perfuse.sources.files import read_bytes
from perfuse.sources.header import read_header

__all__ = ["read_tensors"]

_TYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "int64": "<i8", "int32": "<i4"}


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], Mapping[str, str]]:
    """The arrays of a file by name, bfloat16 as float32, and what the writer noted.

    Raises:
        WeightsError: the file is damaged or a pickle, cannot be read, or has numbers of another type.
    """
    header = read_header(path)
    body = memoryview(read_bytes(path, error=WeightsError))[8 + len(header.text) :]
    arrays: dict[str, NDArray[Any]] = {}
    start = 0
    for name, (dtype, shape) in header.shapes.items():  # in the order of the file
        raw = body[start : start + header.sizes[name]]
        start += len(raw)
        arrays[name] = _array(raw, dtype, shape, f"{name} in {path}")
    return arrays, header.metadata


def _array(raw: memoryview, dtype: str, shape: tuple[int, ...], where: str) -> NDArray[Any]:
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype=np.float32)
    if dtype == "bfloat16":  # the upper half of a float32
        bits = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    if dtype not in _TYPES:
        raise WeightsError(
            f"{where} is stored as {dtype}; {', '.join(_TYPES)} and bfloat16 are read. Save it in "
            "one of these."
        )
    return np.frombuffer(raw, dtype=_TYPES[dtype]).reshape(shape)
