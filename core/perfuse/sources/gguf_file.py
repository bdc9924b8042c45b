"""GGUF files, which llama.cpp's tools write, read through the ``gguf`` package."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.contract.frozen import FrozenDict
from perfuse.errors import InputError, WeightsError
from perfuse.sources.header import Header

if TYPE_CHECKING:
    import torch

__all__ = ["GgufFile"]

_PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: Where ComfyUI's converter notes the shape of a tensor that it flattened to quantise it.
_SHAPE = "comfy.gguf.orig_shape."
#: What a file says that it is of.
_KIND = "general.architecture"
_AGAIN = "Download or save the file again."


class GgufFile:
    """An open GGUF file; a tensor is dequantised when it is asked for.

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

    def get_tensor(self, name: str) -> "torch.Tensor":
        """A tensor in the dtype that it is stored in; float32 where that is quantised."""
        import numpy as np
        import torch
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            if tensor.tensor_type.name in ("F64", "F32", "F16"):
                values = np.array(tensor.data)
            else:
                values = dequantize(tensor.data, tensor.tensor_type)
            whole = torch.from_numpy(values).reshape(self._shape(name))
        except (ValueError, NotImplementedError, KeyError) as exc:
            raise _damaged(self._path, exc) from exc
        return whole.to(torch.bfloat16) if self._dtype(name) == "bfloat16" else whole

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
