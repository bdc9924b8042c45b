"""The weights of an ONNX model: streamed from the checkpoint's file to the artifact's, one by one."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.backend import Change, Constant, StoredTensor, WeightMap
from perfuse.errors import ExportError
from perfuse.sources import write_map

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir

__all__ = ["MODEL", "changed", "dtype_of", "fill", "number_of"]

MODEL, _DATA = "model.onnx", "model.onnx_data"
#: Smaller models are one file.
_EXTERNAL_FROM = 1 << 20
#: Engines map the weights file; a page is the unit of that.
_PAGE = 4096
#: Linux 5.4 and later; an older one refuses it, which does no harm.
_MADV_PAGEOUT = 21
#: Our dtypes as the enumeration of onnx.proto has them.
_NUMBERS = {"float32": 1, "float16": 10, "bfloat16": 16}


def dtype_of(number: int) -> str | None:
    """Our name of one of ONNX's dtypes; ``None`` for one that no weight has."""
    return next((name for name, known in _NUMBERS.items() if known == number), None)


def number_of(dtype: str) -> int:
    """ONNX's number of one of our dtypes."""
    return _NUMBERS[dtype]


def changed(node: "ir.Node", constant: Constant) -> Constant | None:
    """A constant after a node that only rearranges or casts it; ``None`` for another node."""
    if node.op_type == "Transpose" and "perm" in node.attributes:
        axes = tuple(int(axis) for axis in node.attributes["perm"].as_ints())
        return _with(constant, Change(kind="transpose", sizes=axes))
    if node.op_type == "Unsqueeze":
        where = node.inputs[1]
        if where is None or where.const_value is None:
            return None
        shape = list(constant.final_shape)
        for axis in sorted(int(axis) for axis in where.const_value.numpy().ravel()):
            shape.insert(axis, 1)
        return _with(constant, Change(kind="reshape", sizes=tuple(shape)))
    if node.op_type == "Cast":
        dtype = dtype_of(node.attributes["to"].as_int())
        return replace(constant, dtype=dtype) if dtype is not None else None
    return None


def _with(constant: Constant, change: Change) -> Constant:
    return replace(constant, changes=(*constant.changes, change))


def fill(
    model: "onnx.ModelProto",
    weights: WeightMap,
    tensor: Callable[[str], StoredTensor],
    folder: Path,
) -> Path:
    """Write a graph, and its weights one by one: the largest is all that is held at a time.

    Args:
        model: The graph without them.
        weights: What its constants are.
        tensor: Gives a tensor of the module by its name.
        folder: Where to write.

    Raises:
        ExportError: the folder cannot be written, or the precision cannot hold a number.
    """
    path = folder / MODEL
    try:
        if weights.size < _EXTERNAL_FROM:
            for name, constant in weights.constants.items():
                initializer = _initializer(model, name, constant)
                initializer.raw_data = _content(constant, tensor(constant.tensor)).tobytes()
        else:
            with open(folder / _DATA, "wb") as file:
                _write_beside(model, weights, tensor, file)
        path.write_bytes(model.SerializeToString())
        write_map(weights, folder)
    except OSError as exc:
        raise ExportError(
            f"{path} was to be written; the system said: {exc.strerror or exc}. Free space or "
            "choose another folder."
        ) from exc
    return path


def _write_beside(
    model: "onnx.ModelProto",
    weights: WeightMap,
    tensor: Callable[[str], StoredTensor],
    file: io.BufferedWriter,
) -> None:
    from onnx import TensorProto

    mappings = _file_mappings()
    for name, constant in weights.constants.items():
        if constant.size >= _PAGE:
            file.seek(-file.tell() % _PAGE, io.SEEK_CUR)
        initializer = _initializer(model, name, constant)
        initializer.data_location = TensorProto.EXTERNAL
        where = {"location": _DATA, "offset": file.tell(), "length": constant.size}
        for key, value in where.items():
            initializer.external_data.add(key=key, value=str(value))
        source = tensor(constant.tensor)
        file.write(_content(constant, source).data)
        _let_go(source.array, mappings)


def _initializer(model: "onnx.ModelProto", name: str, constant: Constant) -> "onnx.TensorProto":
    made: onnx.TensorProto = model.graph.initializer.add(
        name=name, dims=constant.final_shape, data_type=number_of(constant.dtype)
    )
    return made


def _content(constant: Constant, tensor: StoredTensor) -> "np.ndarray[Any, np.dtype[Any]]":
    """The bytes of a weight as they go into the file."""
    import numpy as np

    array = constant.of(tensor, exact=True).changed(constant.changes).array
    return array.reshape(-1).view(np.uint8)


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


def _let_go(array: "np.ndarray[Any, np.dtype[Any]]", mappings: list[range]) -> None:
    """Tell Linux that the pages of a mapped tensor are done with; all would stay otherwise.

    It is advice that loses nothing: they are read from the file again when somebody needs them.
    """
    import ctypes

    first = array.ctypes.data
    start = -(-first // _PAGE) * _PAGE
    end = (first + array.nbytes) // _PAGE * _PAGE
    if end > start and any(start in mapping for mapping in mappings):
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)
