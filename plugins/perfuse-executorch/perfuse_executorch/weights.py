"""The weights beside a program, ``model.ptd``: a layout that is made once, filled with any checkpoint's.

ExecuTorch keeps constants in a file of their own where it is told to ("FlatTensor"): a beginning that
names them, and segments with their bytes. A program asks for them by these names: the name in the
module for its own kernels, and for XNNPACK's the SHA-256 of the bytes that were there when the graph was
made, which nothing compares with the bytes that are there now.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from perfuse.backend import Change, Constant, Quantized, StoredTensor, WeightMap
from perfuse.errors import ArtifactError, ExportError

__all__ = ["DATA", "Layout", "constants_of", "read_layout"]

DATA = "model.ptd"
#: Beside the program of a graph: how long the whole file is, and where each constant lies in it.
_LAYOUT = "weights-layout.json"
#: What XNNPACK does to a weight before it reads it: nothing, channels last as convolutions take them,
#: and the same of a transposed convolution, whose first two axes change places.
_LAYOUTS: Mapping[int, tuple[tuple[int, ...], ...]] = {4: ((0, 2, 3, 1), (1, 2, 3, 0))}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the constants of a program lie in its file of weights."""

    #: What is before the first of them.
    beginning: bytes
    #: The length of the whole file in bytes.
    size: int
    #: The name of a constant to the first byte of it, and how many it has.
    segments: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, data: bytes) -> "Layout":
        """The layout of a file that ExecuTorch wrote."""
        from executorch.extension.flat_tensor.serialize.serialize import (
            FlatTensorHeader,
            _deserialize_to_flat_tensor,
        )

        header = FlatTensorHeader.from_bytes(data[8:])
        flat = _deserialize_to_flat_tensor(
            data[: header.flatbuffer_offset + header.flatbuffer_size]
        )
        first = header.segment_base_offset
        places = [(first + one.offset, one.size) for one in flat.segments]
        return cls(
            beginning=data[:first],
            size=len(data),
            segments={one.key: places[one.segment_index] for one in flat.named_data},
        )

    def write(self, folder: Path) -> None:
        """Write it beside a program, without the constants."""
        (folder / DATA).write_bytes(self.beginning)
        content = {"size": self.size, "segments": {n: list(p) for n, p in self.segments.items()}}
        (folder / _LAYOUT).write_text(json.dumps(content), encoding="utf-8")

    def filled(
        self, weights: WeightMap, tensors: Mapping[str, StoredTensor | Quantized]
    ) -> bytearray:
        """The whole file with a checkpoint's weights.

        Raises:
            ExportError: a tensor has numbers that the precision cannot hold.
        """
        data = bytearray(self.size)
        data[: len(self.beginning)] = self.beginning
        for name, constant in weights.constants.items():
            self.put(data, name, constant, tensors[constant.tensor])
        return data

    def put(
        self, data: bytearray, name: str, constant: Constant, tensor: StoredTensor | Quantized
    ) -> None:
        """Put one tensor, in the layout of the checkpoint, into the bytes of a file."""
        plain = tensor.dequantized if isinstance(tensor, Quantized) else tensor
        array = constant.of(plain, exact=True).changed(constant.changes).array
        start, size = self.segments[name]
        if array.nbytes != size:
            raise ExportError(
                f"{constant.tensor} has {array.nbytes} bytes; the program has room for {size}. Empty "
                "the cache (perfuse cache clear), so that its graph is made again."
            )
        data[start : start + size] = array.reshape(-1).view(np.uint8).data

    def get(self, data: bytearray, name: str, constant: Constant) -> StoredTensor:
        """One tensor of a file, in the layout of the checkpoint."""
        start, size = self.segments[name]
        array = np.frombuffer(bytes(data[start : start + size]), dtype=constant.dtype)
        stored = StoredTensor(dtype=constant.dtype, array=array.reshape(constant.final_shape))
        return constant.undone(stored)


def read_layout(program: Path) -> Layout:
    """The layout beside a program, of a graph or of an export.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    path = program.with_name(_LAYOUT)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        segments = {
            str(n): (int(first), int(size)) for n, (first, size) in content["segments"].items()
        }
        size = int(content["size"])
        with open(program.with_name(DATA), "rb") as file:
            beginning = file.read(min((first for first, _ in segments.values()), default=size))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
        raise ArtifactError(f"{path} was to be read; {exc}. Export the model again.") from exc
    if any(first < 0 or length < 0 or first + length > size for first, length in segments.values()):
        raise ArtifactError(f"{path} names bytes beyond the file. Export the model again.")
    return Layout(beginning=beginning, size=size, segments=segments)


def constants_of(
    layout: Layout, data: bytes, tensors: Mapping[str, StoredTensor]
) -> dict[str, Constant]:
    """Which constant of a file is which of the tensors that it was written with, by its bytes.

    Raises:
        ExportError: a constant is none of them, because it was computed of several.
    """
    known: dict[bytes, Constant] = {}
    for name, tensor in tensors.items():
        for digest, constant in _forms(name, tensor):
            if known.setdefault(digest, constant).tensor != name:
                raise ExportError(f"{name} and {known[digest].tensor} cannot be told apart.")
    found = {}
    for name, (start, size) in layout.segments.items():
        constant = known.get(hashlib.sha256(data[start : start + size]).digest())
        if constant is None:
            raise ExportError(
                f"The constant {name} of the program is no weight of the model: it was computed of "
                "some, so that graph and weights cannot be had apart."
            )
        found[name] = constant
    return found


def _forms(name: str, tensor: StoredTensor) -> Iterator[tuple[bytes, Constant]]:
    """A tensor's bytes as a program may hold them, by their digest."""
    axes = _LAYOUTS.get(tensor.array.ndim, ())
    orders = ((), *((Change(kind="transpose", sizes=one),) for one in axes))
    for dtype in dict.fromkeys((tensor.dtype, "float32")):  # biases are float32 there
        for changes in orders:
            array = tensor.cast(dtype).changed(changes).array
            shape = tuple(tensor.array.shape)
            yield (
                hashlib.sha256(array.tobytes()).digest(),
                Constant(tensor=name, dtype=dtype, shape=shape, changes=changes),
            )
