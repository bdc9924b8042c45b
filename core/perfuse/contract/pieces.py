"""A component in consecutive pieces, whose weights are in memory in turns."""

import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeVar

from perfuse.contract.backend import Program
from perfuse.contract.component import Component
from perfuse.contract.spec import Array
from perfuse.contract.weights import StoredTensor
from perfuse.errors import ExecutionError
from perfuse.memory import return_memory
from perfuse.progress import working

__all__ = [
    "InPieces",
    "Node",
    "Piece",
    "Turns",
    "Windowed",
    "cut",
    "kept_of",
    "most_of",
    "windows",
]

_T = TypeVar("_T")
#: Into how many pieces what is in memory is divided: one changes while the others stay.
_SHARES = 4
#: Bytes of weights to read from a file before what was read is let go.
_WINDOW = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operation of a graph: the names of what it reads and makes."""

    reads: tuple[str, ...]
    makes: tuple[str, ...]
    #: Whether it reads the shape alone.
    measures: bool = False


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive operations of a graph that run together."""

    #: The positions of its nodes. What follows from weights, or from the shapes of the graph's inputs,
    #: is in each piece that needs it.
    nodes: tuple[int, ...]
    #: What it reads of the graph's inputs and of earlier pieces.
    inputs: tuple[str, ...]
    #: What it makes for later pieces and for the graph's outputs.
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    #: Bytes of these weights.
    size: int


def most_of(sizes: Mapping[str, int], room: int) -> int:
    """The most bytes of weights for a piece, of a graph with these weights in so much room."""
    return room if sum(sizes.values()) <= room else room // _SHARES


def kept_of(sizes: Sequence[int], room: int) -> int:
    """How many pieces, the first ones, can stay while the others take turns in what is left.

    Pieces run in the same order again and again, so whichever goes is as far from its next turn.
    """
    if sum(sizes) <= room:
        return len(sizes)
    kept = 0
    while sum(sizes[: kept + 1]) + max(sizes[kept + 1 :]) <= room:
        kept += 1
    return kept


def cut(
    nodes: Sequence[Node],
    *,
    sizes: Mapping[str, int],
    inputs: Collection[str],
    outputs: Collection[str],
    most: int,
) -> tuple[Piece, ...]:
    """Cut a graph along the order of its nodes.

    Args:
        nodes: They read only what is an input, a weight, made before, or a constant of the graph.
        sizes: The bytes of each weight.
        inputs: The names of the graph's inputs.
        outputs: The names of its outputs.
        most: Bytes of weights in a piece. One node may have more, and is then a piece of its own.
    """
    graph = _Graph(nodes, sizes, inputs, outputs)
    groups: list[list[int]] = [[]]
    held = set[str]()
    for at in graph.steps:
        needed = graph.weights[at]
        if groups[-1] and sum(sizes[name] for name in held | needed) > most and needed - held:
            groups.append([])
            held = set()
        groups[-1].append(at)
        held |= needed
    last = {name: i for i, group in enumerate(groups) for at in group for name in nodes[at].reads}
    last |= dict.fromkeys(outputs, len(groups))
    return tuple(graph.piece(group, i, last) for i, group in enumerate(groups))


class _Graph:
    """The nodes of a graph: those that run once, and those that follow from weights and shapes."""

    def __init__(
        self,
        nodes: Sequence[Node],
        sizes: Mapping[str, int],
        inputs: Collection[str],
        outputs: Collection[str],
    ) -> None:
        self._nodes, self._sizes = nodes, sizes
        self._inputs, self._values = set(inputs), set(inputs)
        #: The positions of the nodes that run once.
        self.steps: list[int] = []
        #: Of each position the weights that it needs, and the positions that prepare them.
        self.weights: list[set[str]] = []
        self._before: list[set[int]] = []
        loose: dict[str, int] = {}
        for at, node in enumerate(nodes):
            before = {loose[name] for name in node.reads if name in loose}
            self.weights.append({name for name in node.reads if name in sizes})
            self._before.append(set(before))
            for one in before:
                self.weights[at] |= self.weights[one]
                self._before[at] |= self._before[one]
            values = self._values - self._inputs if node.measures else self._values
            if values.isdisjoint(node.reads) and set(outputs).isdisjoint(node.makes):
                loose |= dict.fromkeys(node.makes, at)
            else:
                self.steps.append(at)
                self._values.update(node.makes)

    def piece(self, steps: Sequence[int], number: int, last: Mapping[str, int]) -> Piece:
        """The piece of some consecutive steps; ``last`` says which piece reads a value last."""
        made = [name for at in steps for name in self._nodes[at].makes]
        nodes = sorted({*steps, *(one for at in steps for one in self._before[at])})
        read = dict.fromkeys(name for at in nodes for name in self._nodes[at].reads)
        weights = sorted(set().union(*(self.weights[at] for at in steps)))
        return Piece(
            nodes=tuple(nodes),
            inputs=tuple(name for name in read if name in self._values and name not in made),
            outputs=tuple(name for name in made if last.get(name, -1) > number),
            weights=tuple(weights),
            size=sum(self._sizes[name] for name in weights),
        )


def windows(sizes: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """Tensors that are read together, in their order, by the bytes of each."""
    window, held = list[str](), 0
    for name, size in sizes.items():
        if window and held + size > _WINDOW:
            yield tuple(window)
            window, held = [], 0
        window.append(name)
        held += size
    yield tuple(window)


class Windowed(Mapping[str, StoredTensor]):
    """Tensors that are read some at a time, in their order; those of before are not held.

    So a piece whose weights are cast has few of them in two precisions at once.
    """

    def __init__(
        self,
        read: Callable[[Collection[str]], Mapping[str, StoredTensor]],
        sizes: Mapping[str, int],
    ) -> None:
        """Read nothing yet.

        Args:
            read: As of ``Reader``.
            sizes: The names and bytes of the tensors, in the order in which they are asked for.
        """
        self._read = read
        self._windows = {name: window for window in windows(sizes) for name in window}
        self._there: Mapping[str, StoredTensor] = {}

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._there:
            self._there = {}
            self._there = self._read(self._windows[name])
        return self._there[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._windows)

    def __len__(self) -> int:
        return len(self._windows)


class Turns(Generic[_T]):
    """Loads pieces when their turn comes; the first ones stay, the others take turns."""

    def __init__(self, sizes: Sequence[int], room: int, *, name: str) -> None:
        """Load nothing yet.

        Args:
            sizes: The bytes that each piece takes, in their order.
            room: The bytes that pieces may take together.
            name: The component's name, for progress reports.
        """
        self._count, self._name = len(sizes), name
        self.kept = kept_of(sizes, room)
        #: Seconds that loading took so far.
        self.seconds = 0.0
        self._there: dict[int, _T] = {}

    def take(self, number: int, load: Callable[[], _T]) -> _T:
        """A piece, loaded unless it is there; another that does not stay is released before."""
        if number not in self._there:
            self._there = {at: one for at, one in self._there.items() if at < self.kept}
            return_memory()
            began = time.perf_counter()
            message = f"Loading piece {number + 1} of {self._count} of {self._name}"
            with working("prepare", message, subject=self._name):
                self._there[number] = load()
            self.seconds += time.perf_counter() - began
        return self._there[number]

    @property
    def details(self) -> dict[str, Any]:
        """What a report says of them."""
        return {"pieces": self._count, "kept": self.kept, "loading": round(self.seconds, 3)}

    def close(self) -> None:
        """Release all."""
        self._there.clear()


class InPieces(Program, Generic[_T]):
    """A program of several graphs that run one after the other, each on what earlier ones made."""

    concurrent = True  # one call after the other

    def __init__(self, component: Component, pieces: Sequence[Piece], room: int) -> None:
        """Load nothing yet.

        Args:
            component: What they compute.
            pieces: From ``cut``. Values have the signature's names where they are its.
            room: The bytes of weights that may be loaded together.
        """
        self.signature = component.signature
        self._component = component
        self._pieces = pieces
        self._lock = Lock()
        self._closed = False
        sizes = [piece.size for piece in pieces]
        self._turns: Turns[_T] = Turns(sizes, room, name=component.name)

    @abstractmethod
    def _load(self, piece: Piece, values: Mapping[str, Array]) -> _T:
        """Make a piece ready to run on these values."""

    @abstractmethod
    def _run(self, loaded: _T, values: Mapping[str, Array]) -> Sequence[Array]:
        """The piece's outputs in their order."""

    @abstractmethod
    def _entering(self, name: str, array: Array) -> Array:
        """An input as the graph takes it."""

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run all pieces; numpy arrays in and out, float32 where they are floating-point."""
        import numpy as np

        with self._lock:
            if self._closed:
                raise ExecutionError(f"{self._component.name} was closed; prepare it again.")
            spec = self._component.spec
            self._component.check_dims(spec.signature.bind(inputs, component=spec.name))
            values = {name: self._entering(name, array) for name, array in inputs.items()}
            for number, piece in enumerate(self._pieces):
                values |= self._computed(number, piece, values)
                later = {name for one in self._pieces[number + 1 :] for name in one.inputs}
                later.update(self.signature.output_names)
                values = {name: array for name, array in values.items() if name in later}
        found = {name: values[name] for name in self.signature.output_names}
        return {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in found.items()}

    def _computed(self, number: int, piece: Piece, values: Mapping[str, Array]) -> dict[str, Array]:
        """What a piece makes of the values that there are."""
        given = {name: values[name] for name in piece.inputs}
        loaded = self._turns.take(number, partial(self._load, piece, given))
        return dict(zip(piece.outputs, self._run(loaded, given), strict=True))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._turns.close()
