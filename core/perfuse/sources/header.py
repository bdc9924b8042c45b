"""The header of a safetensors file: its tensors' names, dtypes and shapes, checked against its size."""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.original import Shapes
from perfuse.errors import WeightsError
from perfuse.sources.files import open_file

__all__ = ["Header", "read_header"]

#: The safetensors format refuses longer headers, too.
_MAX_HEADER = 100_000_000
#: safetensors' names of dtypes to ours, and their sizes in bytes.
_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
}
#: How a zip archive begins, which torch.save writes, and a bare pickle.
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")
_AGAIN = "Download or save the file again."


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a weight file says about its tensors."""

    #: The header as it is stored.
    text: bytes
    #: Tensor name to its dtype, spelled as in a ``TensorSpec``, and shape.
    shapes: Shapes
    #: Tensor name to its bytes in the file.
    sizes: Mapping[str, int]
    #: Tensor name to where these begin; empty where tensors are not stored as they are.
    starts: Mapping[str, int] = field(default_factory=FrozenDict)
    #: What the writer noted: ``{"format": "pt"}``.
    metadata: Mapping[str, str] = field(default_factory=FrozenDict)

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(self.sizes.values())

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text).hexdigest()


def read_header(path: Path) -> Header:
    """The header of a safetensors file; reads no tensors.

    Raises:
        WeightsError: the file is damaged, or cannot be read.
    """

    def damaged(found: str) -> WeightsError:
        return WeightsError(f"{path} is damaged: {found}. {_AGAIN}")

    try:
        with open_file(path, error=WeightsError, remedy=_AGAIN) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise damaged(f"at least 8 bytes were expected, it has {size}")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(_MAX_HEADER, size - 8):
                if prefix.startswith(_PICKLED):
                    raise damaged("it is a pickle under another name, which perfuse never reads")
                raise damaged(f"its header should have {length} bytes, the whole file has {size}")
            text = file.read(length)
    except OSError as exc:
        raise WeightsError(f"{path} cannot be read: {exc.strerror or exc}. {_AGAIN}") from exc
    try:
        entries = json.loads(text)
        metadata = dict(entries.pop("__metadata__", None) or {})
        spans = {name: tuple(entry["data_offsets"]) for name, entry in entries.items()}
        shapes, end = {}, 0
        for name in sorted(entries, key=spans.__getitem__):
            shapes[name], end = _read_entry(name, entries[name], end, damaged)
        sizes = {name: last - first for name, (first, last) in spans.items()}
        starts = {name: 8 + length + first for name, (first, _) in spans.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise damaged(f"its header is not what safetensors writes ({exc!r})") from exc
    if 8 + length + end != size:
        raise damaged(f"its header describes {8 + length + end} bytes, the file has {size}")
    return Header(
        text=text, shapes=shapes, sizes=sizes, starts=starts, metadata=FrozenDict(metadata)
    )


def _read_entry(
    name: str, entry: Mapping[str, Any], begin: int, damaged: Callable[[str], WeightsError]
) -> tuple[tuple[str, tuple[int, ...]], int]:
    """Dtype and shape of a tensor that should begin at ``begin``, and where it ends."""
    code, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, start, end)):
        raise ValueError(f"{name}: {shape}, {start}, {end}")
    if code not in _DTYPES:
        raise damaged(f"{name} has the dtype {code}; known are {', '.join(_DTYPES)}")
    dtype, width = _DTYPES[code]
    expected = math.prod(shape) * width
    if start != begin or end - start != expected:
        raise damaged(
            f"{name}, {dtype} {shape}, should be the {expected} bytes from {begin}; the header "
            f"places it from {start} to {end}"
        )
    return (dtype, shape), end
