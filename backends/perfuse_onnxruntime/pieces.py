"""A component in pieces: its graph is cut, and each piece is a session while its turn lasts.

Nodes are copied as they are written, so that no package is needed that reads what they mean: a piece
is a model with some of the nodes, and the values that cross a cut as its inputs and outputs.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perfuse.backend import (
    Array,
    Component,
    Constant,
    ExecutionReport,
    InPieces,
    Node,
    Piece,
    StoredTensor,
    Windowed,
    cut,
    most_of,
)
from perfuse.errors import ExecutionError, UnsupportedError
from perfuse.run import Apart
from perfuse.sources import read_map
from perfuse_onnxruntime.binding import declared, feed, field, number, offered
from perfuse_onnxruntime.changing import Adapted
from perfuse_onnxruntime.engine import import_onnxruntime
from perfuse_onnxruntime.external import fields

__all__ = ["Graph", "OnnxPieces"]

#: Fields of onnx.proto: of a model; of a graph; of a node; of a tensor; of an input or output.
_GRAPH = 7
_NODE, _NAME, _INITIALIZER, _INPUT, _OUTPUT = 1, 2, 5, 11, 12
_READS, _MAKES, _KIND = 1, 2, 4
_DIMS, _DTYPE, _TENSOR_NAME, _LOCATION = 1, 2, 8, 14
#: numpy's dtypes as onnx.proto numbers them.
_DTYPES = {"float32": 1, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}
_NAMES = {number: name for name, number in _DTYPES.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """The parts of a model file, as they are written."""

    #: All of the model but its graph.
    around: bytes
    nodes: Sequence[bytes]
    #: Declarations of its inputs, outputs and constants by name; these have no values of weights.
    inputs: Mapping[str, bytes]
    outputs: Mapping[str, bytes]
    constants: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path) -> "Graph":
        """Read a file whose weights are not in it."""
        data = path.read_bytes()
        around, graph = [], list[tuple[int, bytes]]()
        for kind, content in _fields(data):
            if kind != _GRAPH:
                around.append(_written(kind, content))
            elif isinstance(content, bytes):
                graph += [(k, c) for k, c in _fields(content) if isinstance(c, bytes)]
        nodes = [content for kind, content in graph if kind == _NODE]
        inputs, outputs = (
            {_text(content, _READS): content for kind, content in graph if kind == wanted}
            for wanted in (_INPUT, _OUTPUT)
        )
        constants = {_text(c, _TENSOR_NAME): c for kind, c in graph if kind == _INITIALIZER}
        return cls(
            around=b"".join(around),
            nodes=nodes,
            inputs=inputs,
            outputs=outputs,
            constants=constants,
        )

    def cut(self, sizes: Mapping[str, int], most: int) -> tuple[Piece, ...]:
        """The pieces of it, with so many bytes of weights in each; ``sizes`` has those of all."""
        nodes = [
            Node(
                reads=_texts(one, _READS),
                makes=_texts(one, _MAKES),
                measures=_texts(one, _KIND) == ("Shape",),
            )
            for one in self.nodes
        ]
        return cut(nodes, sizes=sizes, inputs=self.inputs, outputs=self.outputs, most=most)

    def external(self) -> dict[str, int]:
        """The constants whose values are in another file, and their bytes."""
        found = {}
        for name, tensor in self.constants.items():
            parts = list(_fields(tensor))
            if (_LOCATION, 1) in parts:
                dtype = next(value for kind, value in parts if kind == _DTYPE)
                each = np.dtype(_NAMES[dtype]).itemsize if dtype in _NAMES else 1
                found[name] = each * math.prod(_dims(parts))
        return found

    def model(
        self, piece: Piece, values: Mapping[str, Array], *, without: Collection[str] = ()
    ) -> bytes:
        """A piece as a model. Of its weights, those that this file declares are declared.

        Args:
            piece: Of ``cut``.
            values: What it is going to read.
            without: The names of weights that are declared elsewhere.
        """
        nodes = [self.nodes[at] for at in piece.nodes]
        reads = dict.fromkeys(name for node in nodes for name in _texts(node, _READS))
        own = [name for name in reads if name in self.constants and name not in without]
        parts = [field(_NODE, node) for node in nodes]
        parts.append(field(_NAME, b"piece"))
        parts += [field(_INITIALIZER, self.constants[name]) for name in own]
        for name in piece.inputs:
            parts.append(field(_INPUT, self.inputs.get(name) or _input(name, values[name])))
        for name in piece.outputs:  # the engine infers the type of what is only named
            parts.append(field(_OUTPUT, self.outputs.get(name) or field(_READS, name.encode())))
        return self.around + field(_GRAPH, b"".join(parts))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    for kind, content in fields(data, 0, len(data)):
        yield kind, data[content] if isinstance(content, slice) else content


def _written(kind: int, content: int | bytes) -> bytes:
    return field(kind, content) if isinstance(content, bytes) else number(kind, content)


def _texts(message: bytes, kind: int) -> tuple[str, ...]:
    """The texts in a field of a message, without empty ones: inputs that are left out."""
    found = (content for at, content in _fields(message) if at == kind)
    return tuple(one.decode() for one in found if isinstance(one, bytes) and one)


def _text(message: bytes, kind: int) -> str:
    return _texts(message, kind)[0]


def _dims(tensor: Sequence[tuple[int, int | bytes]]) -> list[int]:
    """The shape of a TensorProto, whose numbers may be written as one block."""
    found: list[int] = []
    for kind, content in tensor:
        if kind == _DIMS and isinstance(content, int):
            found.append(content)
        elif kind == _DIMS and isinstance(content, bytes):
            # As if each were a field: a key in front makes numbers of a block readable as fields.
            rest = content
            while rest:
                end = next(i for i, byte in enumerate(rest) if byte < 0x80) + 1
                found += [value for _, value in _fields(b"\x08" + rest[:end])]  # type: ignore[misc]
                rest = rest[end:]
    return found


def _input(name: str, array: Array) -> bytes:
    """The ValueInfoProto of an array of this dtype and rank, and of this size if that is a list of sizes.

    The engine takes a list of unknown length for an empty one.
    """
    known = array.dtype.kind == "i" and array.ndim < 2
    return declared(name, _DTYPES[array.dtype.name], array.shape if known else [None] * array.ndim)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    """A piece that is ready to run."""

    session: Any
    #: Weights that it is given at each call.
    fed: Mapping[str, Any]
    #: What must last as long as the session.
    held: Sequence[StoredTensor]


class OnnxPieces(InPieces[_Loaded]):
    """Sessions of pieces of one graph."""

    def __init__(
        self,
        component: Component,
        path: Path,
        apart: Apart | None,
        *,
        room: int,
        device: str,
        settings: Callable[[], Any],
        session: Callable[[bytes, Any], Any],
    ) -> None:
        """Cut the graph; load nothing.

        Args:
            component: What it computes.
            path: The graph's file.
            apart: What reads its weights; ``None`` where they are in a file beside it.
            room: The bytes of weights that may be loaded together.
            device: Where it runs.
            settings: Makes ``onnxruntime.SessionOptions``.
            session: Makes a session of a model and settings.

        Raises:
            UnsupportedError: the file is another tool's.
        """
        self._graph = Graph.read(path)
        names = component.signature
        if set(names.input_names) != self._graph.inputs.keys() or not (
            set(names.output_names) <= self._graph.outputs.keys()
        ):
            raise UnsupportedError(
                f"{component.name} was to run in pieces; {path} takes {', '.join(self._graph.inputs)} and "
                f"gives {', '.join(self._graph.outputs)}, as another tool names them. Give --memory "
                "enough for the whole of it, or leave it out."
            )
        self._apart = apart
        self._device, self._path = device, path
        self._settings, self._session = settings, session
        weights = apart.weights if apart is not None else read_map(path)
        self._constants: Mapping[str, Constant] = weights.constants if weights else {}
        # What is beside the file, which another tool may have written, and what is in it.
        sizes = {name: one.size for name, one in self._constants.items()} | self._graph.external()
        adapted = component.build is None and component.changes is not None
        self._adapted = Adapted(path, component) if adapted else None
        super().__init__(component, self._graph.cut(sizes, most_of(sizes, room)), room)
        self._dtypes = {name: _dtype(one) for name, one in self._graph.inputs.items()}

    def _entering(self, name: str, array: Array) -> Array:
        return np.ascontiguousarray(array, dtype=self._dtypes[name])

    def _load(self, piece: Piece, values: Mapping[str, Array]) -> _Loaded:
        settings, held = self._settings(), list[StoredTensor]()
        fed: Mapping[str, Any] = {}
        if self._apart is not None:
            constants = {name: self._constants[name] for name in piece.weights}
            sizes = {one.tensor: one.size for one in constants.values()}
            tensors = Windowed(self._apart.read, sizes)
            model = self._graph.model(piece, values)
            model, fed, held = feed(model, constants, tensors, settings)
        elif self._adapted is not None:
            changed = dict(self._adapted.initializers(piece.weights))
            parts, fed = offered(changed, settings)
            model = self._graph.model(piece, values, without=changed)
            model, held = model + field(_GRAPH, b"".join(parts)), list(changed.values())
        else:
            model = self._graph.model(piece, values)
        return _Loaded(session=self._session(model, settings), fed=fed, held=held)

    def _run(self, loaded: _Loaded, values: Mapping[str, Array]) -> Sequence[Array]:
        try:
            found: Sequence[Array] = loaded.session.run(None, {**values, **loaded.fed})
        except Exception as exc:  # every status of the engine is a class of its own
            raise ExecutionError(
                f"{self._component.name} was to run on onnxruntime:{self._device}; the engine said: "
                f"{' '.join(str(exc).split())}. If memory ran out, use a smaller size or batch."
            ) from exc
        return found

    def report(self) -> ExecutionReport:
        onnxruntime = import_onnxruntime()

        halves = any(dtype == np.float16 for dtype in self._dtypes.values())
        return ExecutionReport(
            device=self._device,
            precision="float16" if halves else "float32",
            engine=f"onnxruntime {onnxruntime.__version__}",
            details={"file": str(self._path), **self._turns.details},
        )


def _dtype(declared: bytes) -> "np.dtype[Any]":
    """The dtype that a ValueInfoProto declares."""
    content = declared
    for kind in (2, 1):  # its type, and that of a tensor
        content = next(c for k, c in _fields(content) if k == kind and isinstance(c, bytes))
    return np.dtype(_NAMES[next(c for k, c in _fields(content) if k == 1 and isinstance(c, int))])
