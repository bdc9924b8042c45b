"""Which files an ONNX file takes its weights from, read without the onnx package.

ONNX Runtime 1.20 follows a path that leads out of the model's folder, so a file from a stranger
could make one read any other.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from perfuse.errors import ArtifactError, CheckpointError
from perfuse.sources import check_inside

__all__ = ["check_external", "fields"]

#: The fields of onnx.proto that lead to tensors: message, field number, message.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_external(path: Path) -> None:
    """See that the files that ``path`` names are in its folder.

    Raises:
        ArtifactError: a file is missing, or lies elsewhere, or ``path`` is not an ONNX file.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            locations = set(_locations(data))
    except (IndexError, ValueError) as exc:
        raise ArtifactError(
            f"{path} was to be loaded; it is not an ONNX file, or was cut short ({exc}). Export "
            "or download the model again."
        ) from exc
    except OSError as exc:
        raise ArtifactError(
            f"{path} was to be loaded; the system said: {exc.strerror or exc}. Export or download "
            "the model again."
        ) from exc
    for location in sorted(locations):
        weights = path.parent / location
        try:
            check_inside(weights, path.parent)
        except CheckpointError as exc:
            raise ArtifactError(
                f"{path} takes weights from {location!r}, outside of its own folder. Do not use "
                "this file; export the model again from a checkpoint that you trust."
            ) from exc
        if not weights.is_file():
            raise ArtifactError(
                f"{path} takes its weights from {location}, which is not beside it. Export or "
                "download both again."
            )


def _locations(data: mmap.mmap) -> Iterator[str]:
    stack = [("Model", 0, len(data))]
    while stack:
        message, position, end = stack.pop()
        children = _MESSAGES.get(message, {})
        entry: dict[int, bytes] = {}
        for field, value in fields(data, position, end):
            if isinstance(value, slice):
                if field in children:
                    stack.append((children[field], value.start, value.stop))
                elif message == "Entry":
                    entry[field] = data[value]
        if entry.get(1) == b"location":
            yield entry.get(2, b"").decode()


def fields(data: "mmap.mmap | bytes", position: int, end: int) -> Iterator[tuple[int, int | slice]]:
    """The fields of a message: their numbers, and where their bytes are, or the number that they hold.

    Raises:
        IndexError: the message is cut short.
        ValueError: it is not one of protobuf's.
    """
    while position < end:
        key, position = _varint(data, position)
        field, wire = key >> 3, key & 7
        if wire == _BYTES:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError(f"{position + length - end} bytes are missing")
            yield field, slice(position, position + length)
            position += length
        elif wire == _VARINT:
            value, position = _varint(data, position)
            yield field, value
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")


def _varint(data: "mmap.mmap | bytes", position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
