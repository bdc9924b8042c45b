"""The weights of an ONNX model: streamed from the checkpoint's file to the artifact's, one by one."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.errors import ExportError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

__all__ = ["Weight", "write"]

_MODEL, _DATA = "model.onnx", "model.onnx_data"
#: Smaller models are one file.
_EXTERNAL_FROM = 1 << 20
#: Engines map the weights file; a page is the unit of that.
_PAGE = 4096
#: Linux 5.4 and later; an older one refuses it, which does no harm.
_MADV_PAGEOUT = 21


@dataclass(frozen=True, kw_only=True, eq=False)
class Weight:
    """The content of an initializer: a tensor of the module, with changes made when written."""

    source: "torch.Tensor"
    dtype: "ir.DataType"
    shape: tuple[int, ...]
    change: "Callable[[torch.Tensor], torch.Tensor]"

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)


def write(model: "ir.Model", weights: "dict[ir.Value, Weight]", folder: Path) -> Path:
    """Write the graph, and the weights one by one: the largest is all that is held at a time."""
    import numpy as np
    import onnx_ir as ir

    path = folder / _MODEL
    try:
        if sum(weight.bytes for weight in weights.values()) < _EXTERNAL_FROM:
            for value, weight in weights.items():
                array = np.frombuffer(_content(str(value.name), weight), weight.dtype.numpy())
                value.const_value = ir.tensor(array.reshape(weight.shape), name=value.name)
        else:
            mappings = _file_mappings()
            with open(folder / _DATA, "wb") as file:
                for value, weight in weights.items():
                    if weight.bytes >= _PAGE:
                        file.seek(-file.tell() % _PAGE, io.SEEK_CUR)
                    offset = file.tell()
                    file.write(_content(str(value.name), weight))
                    _let_go(weight.source, mappings)
                    value.const_value = ir.ExternalTensor(
                        _DATA,
                        offset,
                        weight.bytes,
                        weight.dtype,
                        shape=ir.Shape(weight.shape),
                        name=str(value.name),
                        base_dir=folder,
                    )
        ir.save(model, path)
    except OSError as exc:
        raise ExportError(
            f"{path} was to be written; the system said: {exc.strerror or exc}. Free space or "
            "choose another folder."
        ) from exc
    return path


def _content(name: str, weight: Weight) -> memoryview:
    """The bytes of a weight as they go into the file.

    Raises:
        ExportError: it holds numbers that its precision cannot.
    """
    import numpy as np
    import onnx_ir as ir
    import torch

    dtypes = {
        ir.DataType.FLOAT16: torch.float16,
        ir.DataType.BFLOAT16: torch.bfloat16,
        ir.DataType.FLOAT: torch.float32,
    }
    dtype = dtypes[weight.dtype]
    tensor = weight.source.to("cpu", dtype)
    if dtype == torch.float16 and not bool(tensor.isfinite().all()):
        raise ExportError(
            f"{name} was to be written in float16, which ends at 65504; the tensor exceeds it. "
            "Use --precision float32."
        )
    plain = weight.change(tensor).contiguous().reshape(-1).view(torch.uint8)
    array: np.ndarray[Any, np.dtype[Any]] = plain.numpy()
    return array.data


def _file_mappings() -> list[range]:
    """The addresses at which files are mapped into this process; none where Linux is not."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, _, _, _, inode, *_ = line.split()
        if inode != "0":
            start, _, end = addresses.partition("-")
            found.append(range(int(start, 16), int(end, 16)))
    return found


def _let_go(tensor: "torch.Tensor", mappings: list[range]) -> None:
    """Tell Linux that the pages of a mapped tensor are done with; all would stay otherwise.

    It is advice that loses nothing: they are read from the file again when somebody needs them.
    """
    import ctypes

    start = -(-tensor.data_ptr() // _PAGE) * _PAGE
    end = (tensor.data_ptr() + tensor.nbytes) // _PAGE * _PAGE
    if end > start and any(start in mapping for mapping in mappings):
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)
