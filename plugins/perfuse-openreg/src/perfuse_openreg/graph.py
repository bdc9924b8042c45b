"""The device's program: a captured component as plain data, and the file that holds it.

The file is one safetensors file: the weights are its tensors, the graph is JSON in its metadata.
Reading it runs nothing; an operator in it is a name that the device looks up in its own table.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from perfuse.errors import ArtifactError

from perfuse_openreg.hardware import ITEM_SIZES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Argument",
    "DType",
    "Graph",
    "Operation",
    "Reference",
    "Value",
    "read",
    "weights",
    "write",
]

VERSION = "1"
_AGAIN = "Export the model again."


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor that the program reads or makes; its size is known."""

    name: str
    #: One of ``ITEM_SIZES``. A result is rounded to it.
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = all(isinstance(size, int) and size >= 0 for size in self.shape)
        if self.dtype not in ITEM_SIZES or not whole:
            raise ValueError(f"{self.name} is {self.dtype} of shape {self.shape}")

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Value":
        return cls(name=str(data["name"]), dtype=data["dtype"], shape=tuple(data["shape"]))


@dataclass(frozen=True)
class Reference:
    """An argument that is a value of the graph."""

    name: str


@dataclass(frozen=True)
class DType:
    """An argument that is a type."""

    name: str


#: What an operator may be given: values of the graph, types, plain values, and lists of them.
Argument: TypeAlias = "Reference | DType | bool | int | float | str | None | list[Argument]"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operator, applied once."""

    #: In the table of ``kernels``: ``"add.Tensor"``.
    operator: str
    arguments: tuple[Argument, ...]
    options: Mapping[str, Argument]
    #: ``None`` for a result that nothing reads.
    results: tuple[Value | None, ...]

    def reads(self) -> Iterator[str]:
        """The names of the values that it is given."""
        return _references([*self.arguments, *self.options.values()])

    def to_dict(self) -> dict[str, Any]:
        return {
            "operator": self.operator,
            "arguments": [_encode(argument) for argument in self.arguments],
            "options": {name: _encode(argument) for name, argument in self.options.items()},
            "results": [v.to_dict() if v is not None else None for v in self.results],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Operation":
        return cls(
            operator=str(data["operator"]),
            arguments=tuple(_decode(argument) for argument in data["arguments"]),
            options={str(name): _decode(a) for name, a in data["options"].items()},
            results=tuple(Value.from_dict(v) if v is not None else None for v in data["results"]),
        )


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A component for one size."""

    component: str
    precision: str
    #: In the signature's order.
    inputs: tuple[Value, ...]
    weights: tuple[Value, ...]
    operations: tuple[Operation, ...]
    #: Names of values, in the signature's order.
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        known: set[str] = set()
        for made in self._made():
            if made.name in known:
                raise ValueError(f"{made.name} is made twice")
            known.add(made.name)
        known = {value.name for value in (*self.inputs, *self.weights)}
        for operation in self.operations:
            if missing := [name for name in operation.reads() if name not in known]:
                raise ValueError(f"{operation.operator} reads {missing[0]}, which nothing made")
            known |= {value.name for value in operation.results if value is not None}
        if missing := [name for name in self.outputs if name not in known]:
            raise ValueError(f"the output {missing[0]} is made by nothing")

    def _made(self) -> Iterator[Value]:
        yield from (*self.inputs, *self.weights)
        for operation in self.operations:
            yield from (value for value in operation.results if value is not None)

    @property
    def weight_bytes(self) -> int:
        return sum(value.size for value in self.weights)

    def last_uses(self) -> list[list[str]]:
        """For each operation, the inputs and results that nothing reads after it."""
        kept = {*self.outputs, *(value.name for value in self.weights)}
        last = {value.name: -1 for value in self.inputs}
        for index, operation in enumerate(self.operations):
            last |= {value.name: index for value in operation.results if value is not None}
            last |= dict.fromkeys(operation.reads(), index)
        freed: list[list[str]] = [[] for _ in self.operations]
        for name, index in last.items():
            if name not in kept and index >= 0:
                freed[index].append(name)
        return freed

    def activation_bytes(self) -> int:
        """The most that inputs and results take at once."""
        sizes = {value.name: value.size for value in self._made()}
        used = peak = sum(value.size for value in self.inputs)
        for operation, freed in zip(self.operations, self.last_uses(), strict=True):
            used += sum(value.size for value in operation.results if value is not None)
            peak = max(peak, used)
            used -= sum(sizes[name] for name in freed)
        return peak

    def to_dict(self) -> dict[str, Any]:
        return {
            "component": self.component,
            "precision": self.precision,
            "inputs": [value.to_dict() for value in self.inputs],
            "weights": [value.to_dict() for value in self.weights],
            "operations": [operation.to_dict() for operation in self.operations],
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Graph":
        return cls(
            component=str(data["component"]),
            precision=str(data["precision"]),
            inputs=tuple(Value.from_dict(value) for value in data["inputs"]),
            weights=tuple(Value.from_dict(value) for value in data["weights"]),
            operations=tuple(Operation.from_dict(one) for one in data["operations"]),
            outputs=tuple(str(name) for name in data["outputs"]),
        )


def _references(arguments: list[Argument]) -> Iterator[str]:
    for argument in arguments:
        if isinstance(argument, Reference):
            yield argument.name
        elif isinstance(argument, list):
            yield from _references(argument)


def _encode(argument: Argument) -> Any:
    if isinstance(argument, Reference):
        return {"value": argument.name}
    if isinstance(argument, DType):
        return {"dtype": argument.name}
    if isinstance(argument, list):
        return [_encode(one) for one in argument]
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": str(argument)}  # JSON has no infinity, and masks do
    return argument


def _decode(data: Any) -> Argument:
    if isinstance(data, list):
        return [_decode(one) for one in data]
    if isinstance(data, dict):
        ((kind, text),) = data.items()
        kinds: Mapping[str, Callable[[str], Argument]]
        kinds = {"value": Reference, "dtype": DType, "float": float}
        return kinds[kind](text)
    plain: bool | int | float | str | None = data
    return plain


def write(path: Path, graph: Graph, weights: "Mapping[str, Tensor]") -> None:
    """Write a program."""
    from safetensors.torch import save_file

    text = json.dumps(graph.to_dict(), allow_nan=False)
    path.touch()
    mode = path.stat().st_mode  # safetensors puts a file there that its owner alone can read
    save_file(dict(weights), path, metadata={"openreg": VERSION, "graph": text})
    path.chmod(mode)


def read(path: Path) -> Graph:
    """Read a program without its weights, and see that they are there.

    Raises:
        ArtifactError: the file is missing, damaged, or made by another version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as exc:
        raise ArtifactError(
            f"{path} cannot be read as an openreg program: {exc}. {_AGAIN}"
        ) from exc
    if metadata.get("openreg") != VERSION:
        raise ArtifactError(
            f"{path} is of version {metadata.get('openreg', 'none')}; this plugin reads version "
            f"{VERSION}. {_AGAIN}"
        )
    try:
        graph = Graph.from_dict(json.loads(metadata["graph"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ArtifactError(f"{path} holds a graph that is damaged: {exc!r}. {_AGAIN}") from exc
    wrong = [value.name for value in graph.weights if shapes.get(value.name) != value.shape]
    if wrong or len(shapes) != len(graph.weights):
        raise ArtifactError(
            f"{path} holds {len(shapes)} weights, its graph has {len(graph.weights)}; "
            f"{', '.join(wrong) or 'some'} do not fit. {_AGAIN}"
        )
    return graph


def weights(path: Path, graph: Graph) -> "Iterator[tuple[Value, Tensor]]":
    """The weights of a program that ``read`` has read, one at a time."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for value in graph.weights:
            yield value, file.get_tensor(value.name)
