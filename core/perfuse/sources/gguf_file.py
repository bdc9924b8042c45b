"""GGUF files, which llama.cpp's tools write, read through the ``gguf`` package."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.original import View
from perfuse.contract.quantized import Blocks, Quantized
from perfuse.contract.weights import StoredTensor
from perfuse.errors import InputError, WeightsError
from perfuse.sources.header import Header

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from perfuse.sources.gguf_blocks import Kind

__all__ = ["GgufFile"]

_PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: Numpy's names of these; of bfloat16 the bits.
_STORED = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
#: Where ComfyUI's converter notes the shape of a tensor that it flattened to quantise it.
_SHAPE = "comfy.gguf.orig_shape."
#: What a file says that it is of.
_KIND = "general.architecture"
_AGAIN = "Download or save the file again."


class GgufFile:
    """An open GGUF file; a tensor is read when it is asked for.

    Raises:
        InputError: the package ``gguf`` is not installed.
        WeightsError: the file is damaged, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as exc:
            raise InputError(
                f"{path} is a GGUF file; reading it needs the package gguf, which is not "
                "installed: pip install 'perfuse[gguf]'"
            ) from exc
        try:
            reader = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self._fields: Mapping[str, Any] = reader.fields
        except (OSError, ValueError, LookupError, struct.error) as exc:
            raise _damaged(path, exc) from exc
        self._path = path

    def keys(self) -> list[str]:
        return list(self._tensors)

    def header(self) -> Header:
        """Names, dtypes (``"q8_0"`` for a quantised tensor), shapes, bytes."""
        shapes = {name: (self._dtype(name), self._shape(name)) for name in self._tensors}
        sizes = {name: int(tensor.n_bytes) for name, tensor in self._tensors.items()}
        stat = self._path.stat()
        text = json.dumps([stat.st_size, stat.st_mtime_ns, list(shapes.items())])
        field = self._fields.get(_KIND)
        kind = bytes(field.parts[field.data[-1]]).decode("utf-8", "replace") if field else ""
        return Header(
            text=text.encode(),
            shapes=FrozenDict(shapes),
            sizes=FrozenDict(sizes),
            metadata=FrozenDict({_KIND: kind}),
        )

    def numbers(self, view: View) -> StoredTensor:
        """The tensor that a view is, or is a part of; in float32 where it is quantised.

        Raises:
            WeightsError: the file is damaged, or the blocks are of a kind that nobody can read here.
        """
        import numpy as np
        from gguf.quants import dequantize

        name = view.stored
        tensor, dtype = self._tensors[name], self._dtype(name)
        try:
            data = self._bytes(name)
            if dtype in _STORED:
                array = data.view(_STORED[dtype])
            else:
                dtype = "float32"
                array = dequantize(data.reshape(tensor.data.shape), tensor.tensor_type)
            if dtype == "float64":
                dtype, array = "float32", array.astype(np.float32)
            array = view.of_array(array.reshape(self._shape(name)))
        except (OSError, ValueError, NotImplementedError, KeyError) as exc:
            raise _damaged(self._path, exc) from exc
        return StoredTensor(dtype=dtype, array=array)

    def tensor(self, view: View) -> StoredTensor:
        """The same; a matrix in blocks that are integers with a scale for each group as ``Blocks``.

        What is in other blocks, or turned about, is given as numbers.
        """
        from gguf import GGML_QUANT_SIZES

        from perfuse.sources.gguf_blocks import KINDS

        code, shape = self._tensors[view.stored].tensor_type, self._shape(view.stored)
        kind, length = KINDS.get(code.name), GGML_QUANT_SIZES[code][0]
        rows = len(view.shape) == len(shape) == 2 and view.shape[1] == shape[1]
        if kind is None or view.transposed or not rows or shape[1] % length:
            return self.numbers(view)
        return Blocks(
            view.shape,
            integers=partial(self._integers, view, kind),
            numbers=lambda: self.numbers(view).array,
        )

    def _integers(self, view: View, kind: "Kind") -> Quantized:
        try:
            rows = self._bytes(view.stored).reshape(self._shape(view.stored)[0], -1)
            data = replace(view, shape=(view.shape[0], -1)).of_array(rows)
            return kind.integers(data, view.shape)
        except (OSError, ValueError) as exc:
            raise _damaged(self._path, exc) from exc

    def _bytes(self, name: str) -> "NDArray[Any]":
        """The bytes of a tensor, mapped anew: what nobody holds any more takes no memory."""
        import numpy as np

        tensor = self._tensors[name]
        size = int(tensor.n_bytes)
        if not size:
            return np.empty(0, np.uint8)
        start = int(tensor.data_offset)
        mapped = np.memmap(self._path, np.uint8, mode="c", offset=start, shape=size)
        return mapped.view(np.ndarray)

    def _dtype(self, name: str) -> str:
        code: str = self._tensors[name].tensor_type.name
        return _PLAIN.get(code, code.lower())

    def _shape(self, name: str) -> tuple[int, ...]:
        # GGUF counts dimensions from the innermost.
        shape = tuple(int(size) for size in reversed(self._tensors[name].shape))
        noted = self._fields.get(_SHAPE + name)
        if noted is not None:
            before = tuple(int(noted.parts[i][0]) for i in noted.data)
            shape = before if math.prod(before) == math.prod(shape) else shape
        return shape


def _damaged(path: Path, exc: Exception) -> WeightsError:
    said = " ".join(str(exc).split()).rstrip(".") or type(exc).__name__
    return WeightsError(f"{path} is damaged, or of a kind that gguf cannot read: {said}. {_AGAIN}")
