"""The weights of an ONNX model: streamed from the checkpoint's file to the artifact's, one by one."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.backend import Change, Constant, Quantized, StoredTensor, WeightMap, packed
from perfuse.errors import ExportError, UnwritableError
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
#: Its integers by their bits, and whether they have a sign.
_INTEGERS = {(8, True): 3, (8, False): 2, (4, True): 22, (4, False): 21}
#: The first version of ONNX's operators with four bits, and with scales for blocks.
_BLOCKS = 21


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
    tensor: Callable[[str], StoredTensor | Quantized],
    folder: Path,
) -> Path:
    """Write a graph, and its weights one by one: the largest is all that is held at a time.

    Args:
        model: The graph without them.
        weights: What its constants are.
        tensor: Gives a tensor of the module by its name.
        folder: Where to write.

    Raises:
        UnwritableError: the folder cannot be written.
        ExportError: the precision cannot hold a number.
    """
    path = folder / MODEL
    try:
        if weights.size < _EXTERNAL_FROM:
            for name, constant in weights.constants.items():
                for one in _pieces(model, name, constant, tensor(constant.tensor)):
                    _initializer(model, one).raw_data = one.content.tobytes()
        else:
            with open(folder / _DATA, "wb") as file:
                _write_beside(model, weights, tensor, file)
        path.write_bytes(model.SerializeToString())
        write_map(weights, folder)
    except OSError as exc:
        raise UnwritableError(
            f"{path} was to be written; the system said: {exc.strerror or exc}. Free space or "
            "choose another folder."
        ) from exc
    return path


def _write_beside(
    model: "onnx.ModelProto",
    weights: WeightMap,
    tensor: Callable[[str], StoredTensor | Quantized],
    file: io.BufferedWriter,
) -> None:
    from onnx import TensorProto

    mappings = _file_mappings()
    for name, constant in weights.constants.items():
        source = tensor(constant.tensor)
        for one in _pieces(model, name, constant, source):
            if one.content.size >= _PAGE:
                file.seek(-file.tell() % _PAGE, io.SEEK_CUR)
            initializer = _initializer(model, one)
            initializer.data_location = TensorProto.EXTERNAL
            where = {"location": _DATA, "offset": file.tell(), "length": one.content.size}
            for key, value in where.items():
                initializer.external_data.add(key=key, value=str(value))
            file.write(one.content.data)
        if isinstance(source, StoredTensor):
            _let_go(source.array, mappings)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """An initializer: a weight, or a part of one that is in integers."""

    name: str
    shape: tuple[int, ...]
    #: ONNX's number of its dtype.
    dtype: int
    #: Its bytes, [N].
    content: "np.ndarray[Any, np.dtype[np.uint8]]"


def _initializer(model: "onnx.ModelProto", piece: _Piece) -> "onnx.TensorProto":
    made: onnx.TensorProto = model.graph.initializer.add(
        name=piece.name, dims=piece.shape, data_type=piece.dtype
    )
    return made


def _pieces(
    model: "onnx.ModelProto", name: str, constant: Constant, tensor: StoredTensor | Quantized
) -> list[_Piece]:
    """What is written of a weight; the model is given the node that makes it of integers."""
    import numpy as np

    if isinstance(tensor, Quantized):
        arranged = tensor.changed(constant.changes)
        kept = tensor.scheme.kept
        if arranged is not None and (not kept or _only_multiplied(model, name, arranged)):
            offsets = _add_offsets(model, name, constant, arranged)
            return [*offsets, *_integers(model, name, constant, arranged)]
        tensor = tensor.dequantized
    array = constant.of(tensor, exact=True).changed(constant.changes).array
    content = array.reshape(-1).view(np.uint8)
    dtype = number_of(constant.dtype)
    return [_Piece(name=name, shape=constant.final_shape, dtype=dtype, content=content)]


def _integers(
    model: "onnx.ModelProto", name: str, constant: Constant, tensor: Quantized
) -> list[_Piece]:
    """The parts of a weight in integers, which ``DequantizeLinear`` puts together."""
    import numpy as np
    from onnx import helper

    bits, block = tensor.scheme.bits, tensor.scheme.group
    kind = _INTEGERS[bits, tensor.zero is None]
    sizes = tensor.scale.shape if block else (tensor.scale.size,)  # one an output is a list in ONNX

    def piece(part: str, array: "np.ndarray[Any, Any]", shape: tuple[int, ...], of: int) -> _Piece:
        plain = packed(array) if bits == 4 and of == kind else array.reshape(-1).view(np.uint8)
        return _Piece(name=f"{name}/{part}", shape=shape, dtype=of, content=plain)

    pieces = [
        piece("codes", tensor.codes, tensor.codes.shape, kind),
        piece("scale", tensor.scale, sizes, _NUMBERS["float32"]),
    ]
    if tensor.zero is not None:
        pieces.append(piece("zero", tensor.zero, sizes, kind))
    whole = name if constant.dtype == "float32" else f"{name}/float32"
    parts = [one.name for one in pieces]
    nodes = [helper.make_node("DequantizeLinear", parts, [whole], axis=tensor.axis)]
    if block:
        nodes[0].attribute.append(helper.make_attribute("block_size", block))
    if whole != name:  # a scale in half precision would lose digits
        nodes.append(helper.make_node("Cast", [whole], [name], to=number_of(constant.dtype)))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    if block:
        _read_as(model, _BLOCKS)
    if tensor.range is not None:
        if whole != name:
            raise ExportError(
                f"{name} was to be multiplied in integers in {constant.dtype}; ONNX files have that in "
                "float32 alone. Use --precision w8a8."
            )
        pieces += _round_inputs(model, name, tensor.range)
    return pieces


def _only_multiplied(model: "onnx.ModelProto", name: str, tensor: Quantized) -> bool:
    """Whether a matrix is only read by products that sum along its groups.

    A look-up in a table would widen all of it.
    """
    from onnx import helper

    readers = [node for node in model.graph.node if name in node.input]
    for node in readers:
        settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        summed = 1 if settings.get("transB", 0) else 0
        plain = not settings.get("transA", 0) and settings.get("alpha", 1) == 1
        product = node.op_type in ("MatMul", "Gemm") and plain and node.input[0] != name
        if not product or node.input[1] != name or tensor.axis != summed:
            return False
    return True


def _add_offsets(
    model: "onnx.ModelProto", weight: str, constant: Constant, tensor: Quantized
) -> list[_Piece]:
    """Add what the offsets of a matrix's groups contribute to its products; returns what that needs.

    What is multiplied with a group has the same offset, so its sum is multiplied with that:
    ``x W = x (codes * scale) + sums(x) offset``. Engines then find integers as their kernels take them.
    """
    import numpy as np
    from onnx import helper

    if tensor.offset is None or tensor.scheme.group is None:
        return []
    offset = np.ascontiguousarray(
        tensor.offset if tensor.axis == 0 else tensor.offset.T
    )  # [groups, O]
    stored = StoredTensor(dtype="float32", array=offset).cast(constant.dtype).array
    by, groups, last = (f"{weight}/{name}" for name in ("offset", "groups", "last"))
    nodes = model.graph.node
    places = [place for place, node in enumerate(nodes) if weight in node.input[1:2]]
    for place in reversed(places):
        product, name = nodes[place], f"{weight}/{place}"
        whole, codes = product.output[0], f"{name}/codes"
        product.output[0] = codes
        added = (
            helper.make_node("Reshape", [product.input[0], groups], [f"{name}/cut"]),
            helper.make_node("ReduceSum", [f"{name}/cut", last], [f"{name}/sums"], keepdims=0),
            helper.make_node("MatMul", [f"{name}/sums", by], [f"{name}/rows"]),
            helper.make_node("Shape", [codes], [f"{name}/shape"]),
            helper.make_node("Reshape", [f"{name}/rows", f"{name}/shape"], [f"{name}/added"]),
            helper.make_node("Add", [codes, f"{name}/added"], [whole]),
        )
        for one in reversed(added):
            nodes.insert(place + 1, one)
    sizes = [-1, len(offset), tensor.scheme.group]
    nodes.insert(0, helper.make_node("Constant", [], [groups], value_ints=sizes))
    nodes.insert(0, helper.make_node("Constant", [], [last], value_ints=[2]))
    content, number = stored.reshape(-1).view(np.uint8), number_of(constant.dtype)
    return [_Piece(name=by, shape=offset.shape, dtype=number, content=content)]


def _round_inputs(model: "onnx.ModelProto", weight: str, ends: tuple[float, float]) -> list[_Piece]:
    """Round what a matrix is multiplied with to 256 steps of a range; returns what that needs.

    What a convolution is given stays as it is: the CPU multiplies it in integers only where its
    output is rounded, too, which would lose more.
    """
    import numpy as np
    from onnx import helper

    step = (ends[1] - ends[0]) / 255
    scale = np.array([step], np.float32).view(np.uint8)
    zero = np.array([round(-ends[0] / step)], np.uint8)
    number = _INTEGERS[8, False]
    pieces = [
        _Piece(name=f"{weight}/step", shape=(), dtype=_NUMBERS["float32"], content=scale),
        _Piece(name=f"{weight}/first", shape=(), dtype=number, content=zero),
    ]
    names = [one.name for one in pieces]
    nodes = model.graph.node
    places = [
        place
        for place, node in enumerate(nodes)
        if node.op_type in ("MatMul", "Gemm") and node.input[1] == weight
    ]
    for place in reversed(places):
        codes, wide = f"{weight}/input{place}", f"{weight}/rounded{place}"
        rounding = helper.make_node("QuantizeLinear", [nodes[place].input[0], *names], [codes])
        nodes[place].input[0] = wide
        nodes.insert(place, helper.make_node("DequantizeLinear", [codes, *names], [wide]))
        nodes.insert(place, rounding)
    return pieces if places else []


def _read_as(model: "onnx.ModelProto", opset: int) -> None:
    """Declare a later version of ONNX's own operators, which changed none that graphs have."""
    for one in model.opset_import:
        if one.domain == "":
            one.version = max(one.version, opset)


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
