"""Reads ``weight.bin``: MIL's blob storage, version 2.

A header of 64 bytes (the number of blobs, the version), then blobs, each a record of 64 bytes
(a sentinel, the type, the size in bytes, the offset of the data, the bits of padding) and its data,
both aligned to 64 bytes. Little endian. Source: MILBlob/Blob/StorageFormat.hpp and BlobDataType.hpp
of https://github.com/apple/coremltools.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import ArtifactError
from perfuse_exporters.coreml.mlpackage import RECORD

__all__ = ["BITS", "WeightFile", "unpacked"]

_HEADER = struct.Struct("<II56x")
_SENTINEL = 0xDEADBEEF
_VERSION = 2
_ALIGNMENT = 64

#: Bits of the types whose elements share bytes; the least significant bits come first.
BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
_TYPES = (
    "",
    *("float16", "float32", "uint8", "int8", "bfloat16", "int16", "uint16", "int4", "uint1"),
    *("uint2", "uint4", "uint3", "uint6", "int32", "uint32", "float8e4m3fn", "float8e5m2"),
)
_STORED = ("float16", "float32", "uint8", "int8", "int16", "uint16", "int32", "uint32")


class WeightFile:
    """A memory-mapped weight file: only weights that are used are read."""

    def __init__(self, path: Path) -> None:
        """Check the header.

        Raises:
            ArtifactError: the file is missing, or no storage of this version.
        """
        self._path = path
        try:
            # Copy on write: torch wants memory that it may write to, and the file stays as it is.
            self._bytes: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, mode="c")
        except (OSError, ValueError) as exc:
            raise ArtifactError(
                f"{path} was to be read as the weights of a Core ML program; {exc}. Copy or export "
                "the package again."
            ) from exc
        if self._bytes.size < _HEADER.size:
            raise self._damaged(f"it holds {self._bytes.size} bytes")
        _, version = _HEADER.unpack(self._bytes[: _HEADER.size].tobytes())
        if version != _VERSION:
            raise self._damaged(f"its storage has version {version}, not {_VERSION}")

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The array of the blob whose record is at an offset; a view where its type allows it.

        Args:
            offset: In bytes.
            dtype: What the program declares; elements of less than a byte become bytes.
            shape: What the program declares.

        Raises:
            ArtifactError: there is no such blob, or another one.
        """
        record = self._bytes[offset : offset + RECORD.size].tobytes()
        if offset % _ALIGNMENT or len(record) < RECORD.size:
            raise self._damaged(f"a blob is looked for at {offset} of {self._bytes.size} bytes")
        sentinel, type_, size, start, padding = RECORD.unpack(record)
        if sentinel != _SENTINEL:
            raise self._damaged(f"there is no blob at {offset}")
        found = _TYPES[type_] if type_ < len(_TYPES) else f"type {type_}"
        count = int(np.prod(shape, dtype=np.int64))
        bits = count * BITS[dtype] if dtype in BITS else 8 * count * _itemsize(dtype)
        if found != dtype or size != -(-bits // 8) or padding != 8 * size - bits:
            raise self._damaged(
                f"the blob at {offset} holds {size} bytes of {found}; the program wants "
                f"{count} elements of {dtype} there"
            )
        if start % _ALIGNMENT or start + size > self._bytes.size:
            raise self._damaged(
                f"the blob at {offset} is said to lie from {start} to {start + size}; the file "
                f"holds {self._bytes.size} bytes"
            )
        data = self._bytes[start : start + size]
        if dtype in BITS:
            return unpacked(data, BITS[dtype], count, signed=dtype[0] == "i").reshape(shape)
        return data.view(dtype).reshape(shape)

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self._path} was to be read as the weights of a Core ML program; {what}. Copy or "
            "export the package again."
        )


def _itemsize(dtype: str) -> int:
    return np.dtype(dtype).itemsize if dtype in _STORED else 0


def unpacked(
    data: npt.NDArray[np.uint8], bits: int, count: int, *, signed: bool = False
) -> npt.NDArray[Any]:
    """Elements of a few bits each, least significant bits first, as a byte each."""
    if bits == 8:
        return data[:count]
    flags = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    values: npt.NDArray[np.uint8] = np.packbits(flags, axis=1, bitorder="little")[:, 0]
    if not signed:
        return values
    lift = 8 - bits  # the sign's bit to the top of the byte and back
    return (values << lift).view(np.int8) >> lift
