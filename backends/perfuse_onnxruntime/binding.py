"""Gives a graph its weights in memory: no file is written, and no path is followed.

A graph in the cache names its weights and has none. What declares them, and what turns them around
or widens them where that is needed, is written in front of the graph: protobuf reads two messages,
one after the other, as one that has the fields of both.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from perfuse.backend import Constant, StoredTensor

__all__ = ["bind", "declared", "feed", "field", "give", "number", "offered"]

#: Our dtypes as onnx.proto numbers them.
_DTYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
_INT64, _EXTERNAL = 7, 1
#: Its types of attributes.
_INT, _INTS = 2, 7


def bind(
    model: bytes,
    constants: Mapping[str, Constant],
    tensors: Mapping[str, StoredTensor],
    settings: Any,
) -> tuple[bytes, list[StoredTensor]]:
    """The model to make a session of; its weights go into the session's settings.

    Each tensor stays where and as it is. What is done to it is part of the model, and the engine
    does it once, when the session is made.

    Args:
        model: The graph.
        constants: What its weights are.
        tensors: The tensors that they are made of.
        settings: The ``onnxruntime.SessionOptions``.

    Returns:
        The model, and the tensors, whose memory must last as long as the session.

    Raises:
        ExportError: a tensor has numbers that the graph's precision cannot hold.
    """
    steps, given = _rearranged(constants, tensors)
    initializers = [field(5, one) for one in give(given, settings).values()]
    return field(7, b"".join([*steps, *initializers])) + model, list(given.values())


def feed(
    model: bytes,
    constants: Mapping[str, Constant],
    tensors: Mapping[str, StoredTensor],
    settings: Any,
) -> tuple[bytes, dict[str, Any], list[StoredTensor]]:
    """As ``bind``, with all that is large as inputs, which are read where they lie at each call.

    The engine copies initializers that lie in memory when a session is made.

    Returns:
        The model, the values of these inputs, and the tensors, whose memory must last as long as the
        session.

    Raises:
        ExportError: a tensor has numbers that the graph's precision cannot hold.
    """
    steps, given = _rearranged(constants, tensors)
    parts, fed = offered(given, settings)
    # Behind the graph: in the order of the nodes, a weight is turned around when it is used.
    return model + field(7, b"".join([*parts, *steps])), fed, list(given.values())


def offered(
    tensors: Mapping[str, StoredTensor], settings: Any
) -> tuple[list[bytes], dict[str, Any]]:
    """Give a session tensors in memory: vectors as initializers, the others as inputs.

    Args:
        tensors: By their names in the model.
        settings: The ``onnxruntime.SessionOptions``.

    Returns:
        What declares them, as fields of GraphProto, and the values of the inputs.
    """
    # Of vectors optimisations read the values: scales and shifts of norms.
    large = {name: tensor for name, tensor in tensors.items() if tensor.array.ndim > 1}
    small = {name: tensor for name, tensor in tensors.items() if name not in large}
    parts = [field(5, one) for one in give(small, settings).values()]
    parts += [
        field(11, declared(name, _DTYPES[tensor.dtype], tensor.array.shape))
        for name, tensor in large.items()
    ]
    return parts, {name: _value(tensor) for name, tensor in large.items()}


def _rearranged(
    constants: Mapping[str, Constant], tensors: Mapping[str, StoredTensor]
) -> tuple[list[bytes], dict[str, StoredTensor]]:
    """What makes constants of tensors, as fields of GraphProto, and the tensors by their names there."""
    fields, given = list[bytes](), dict[str, StoredTensor]()
    for name, constant in constants.items():
        tensor = constant.of(tensors[constant.tensor])
        steps = list(_steps(constant, tensor))
        # From the stored tensor to the constant, which has the name that the graph knows.
        chain = [*(f"{name}/{i}" for i in range(len(steps))), name]
        for step, source, target in zip(steps, chain, chain[1:], strict=False):
            fields += step.fields(source, target)
        given[chain[0]] = tensor
    return fields, given


def declared(name: str, dtype: int, shape: Sequence[int | None]) -> bytes:
    """The ValueInfoProto of an array of a dtype, as onnx.proto numbers it; ``None`` for any size."""
    sizes = b"".join(field(1, number(1, one) if one is not None else b"") for one in shape)
    tensor = number(1, dtype) + field(2, sizes)
    return field(1, name.encode()) + field(2, field(1, tensor))


def give(tensors: Mapping[str, StoredTensor], settings: Any) -> dict[str, bytes]:
    """Give a session tensors in memory, which must last as long as it.

    Args:
        tensors: By the names of the model's initializers.
        settings: The ``onnxruntime.SessionOptions``.

    Returns:
        The TensorProto of each, with which the model declares it.
    """
    settings.add_external_initializers(list(tensors), [_value(one) for one in tensors.values()])
    return {name: _external(name, tensor) for name, tensor in tensors.items()}


def _value(tensor: StoredTensor) -> Any:
    from onnxruntime import OrtValue

    if tensor.dtype == "bfloat16":
        return OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.array, _DTYPES[tensor.dtype])
    return OrtValue.ortvalue_from_numpy(tensor.array)


class _Step:
    """A node with one input and one output, and the constant that says to which shape, if any."""

    def __init__(self, kind: str, attribute: bytes = b"", shape: tuple[int, ...] = ()) -> None:
        self._kind = kind
        self._attribute = attribute
        self._shape = shape

    def fields(self, source: str, target: str) -> list[bytes]:
        """The fields of GraphProto that it is."""
        inputs, made = [source], []
        if self._shape:
            inputs.append(f"{target}/shape")
            made.append(field(5, _shape(inputs[-1], self._shape)))
        node = b"".join(field(1, one.encode()) for one in inputs)
        node += field(2, target.encode()) + field(4, self._kind.encode())
        if self._attribute:
            node += field(5, self._attribute)
        return [*made, field(1, node)]


def _steps(constant: Constant, tensor: StoredTensor) -> Iterator[_Step]:
    """What is done to a stored tensor before the graph reads it."""
    if tensor.dtype != constant.dtype:
        to = field(1, b"to") + number(3, _DTYPES[constant.dtype]) + number(20, _INT)
        yield _Step("Cast", to)
    for change in constant.changes:
        if change.kind == "transpose":
            axes = b"".join(number(8, axis) for axis in change.sizes)
            yield _Step("Transpose", field(1, b"perm") + axes + number(20, _INTS))
        else:
            yield _Step("Reshape", shape=change.sizes)


def _external(name: str, tensor: StoredTensor) -> bytes:
    """The TensorProto of a tensor whose values are elsewhere: the engine is given them."""
    dims = b"".join(number(1, size) for size in tensor.array.shape)
    place = field(13, field(1, b"location") + field(2, b"given in memory"))
    dtype = number(2, _DTYPES[tensor.dtype])
    return dims + dtype + field(8, name.encode()) + place + number(14, _EXTERNAL)


def _shape(name: str, sizes: tuple[int, ...]) -> bytes:
    """The TensorProto of a shape."""
    values = field(9, np.array(sizes, "<i8").tobytes())
    return number(1, len(sizes)) + number(2, _INT64) + field(8, name.encode()) + values


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, text or a message, as protobuf writes it."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def number(number: int, value: int) -> bytes:
    """A field of a whole number from 0."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
