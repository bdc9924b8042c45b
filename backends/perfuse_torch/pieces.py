"""A module in pieces: its weights are loaded in the order in which it uses them, in turns.

The module is the model's own, with weights that have no content. Whatever function is called with one
of them is given the weight itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from perfuse.backend import (
    Changes,
    Component,
    Node,
    Piece,
    Recipe,
    StoredTensor,
    Turns,
    cut,
    most_of,
    plain_name,
    windows,
)
from perfuse.capture import changed_weights, example_inputs, replace_tensors

__all__ = ["Pieces"]

#: Reads that are about a tensor, not its content.
_ATTRIBUTE = "__get__"


class _Exchanging(TorchFunctionMode, ABC):
    """While it is entered, functions are called with other tensors than they are given."""

    @abstractmethod
    def _other(self, tensor: Tensor) -> Tensor:
        """What takes a tensor's place."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__name__", "") == _ATTRIBUTE:
            return func(*args, **given)
        others = {name: self._exchanged(one) for name, one in given.items()}
        return func(*map(self._exchanged, args), **others)

    def _exchanged(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._other(value)
        if isinstance(value, (list, tuple)) and any(isinstance(one, Tensor) for one in value):
            return type(value)(map(self._exchanged, value))
        return value


class Pieces(_Exchanging):
    """While it is entered, a module's weights are loaded when they are used."""

    def __init__(
        self,
        component: Component,
        dtype: torch.dtype,
        *,
        room: int,
        place: Callable[[Tensor], Tensor],
    ) -> None:
        """Build the module; load nothing.

        Args:
            component: Whose module it is.
            dtype: Of its floating-point weights.
            room: The bytes of weights that may be loaded together.
            place: Puts a tensor where it is used, in the dtype that is computed in.
        """
        super().__init__()
        build = component.unchanged.build
        assert build is not None  # it has a module
        hollow = build.hollow() if isinstance(build, Recipe) else None
        module, reader = hollow if hollow is not None else (build(), None)
        held = {name: one.detach() for name, one in _named(module) if one.is_floating_point()}
        names = held.keys() & reader.names if reader is not None else held.keys()
        #: What reads some of them; without it they stay with the module, in its memory.
        self._reader, self._held = reader, held if reader is None else {}
        self._shapes = {name: held[name].shape for name in names}
        self._sizes = {name: held[name].nbytes for name in names}
        self._changes, self._precision = component.changes, component.precision
        self._place = place
        taken = {id(one) for name, one in _named(module) if name in names}

        def emptied(tensor: Tensor) -> Tensor:
            if id(tensor) in taken:
                return torch.empty(tensor.shape, dtype=dtype, device="meta")
            return place(tensor)

        self.module = replace_tensors(module, emptied)
        self._names = {id(one): name for name, one in _named(self.module) if name in names}
        sizes = {name: one.nbytes for name, one in _named(self.module) if name in names}
        # In the order of their use; those of no use last.
        order = dict.fromkeys((*_used(self.module, component, dtype, self._names), *sizes))
        nodes = [Node(reads=(name, "inputs"), makes=()) for name in order]
        most = most_of(sizes, room)
        self._pieces = cut(nodes, sizes=sizes, inputs=["inputs"], outputs=[], most=most)
        self._of = {name: i for i, piece in enumerate(self._pieces) for name in piece.weights}
        held_at_once = [piece.size for piece in self._pieces]
        self.turns: Turns[dict[str, Tensor]] = Turns(held_at_once, room, name=component.name)

    def _other(self, tensor: Tensor) -> Tensor:
        name = self._names.get(id(tensor))
        return tensor if name is None else self._weight(name)

    def _weight(self, name: str) -> Tensor:
        number = self._of[name]
        return self.turns.take(number, lambda: dict(self._load(self._pieces[number])))[name]

    def _load(self, piece: Piece) -> Iterator[tuple[str, Tensor]]:
        """The weights of a piece, read some at a time."""
        for names in windows({name: self._sizes[name] for name in piece.weights}):
            found = self._read(names)
            if self._changes is not None:
                found |= _changed(found, self._changes, self._precision)
            for name in names:
                yield name, self._place(found.pop(name))

    def _read(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Weights as they are stored."""
        if self._reader is None:
            return {name: self._held[name] for name in names}
        tensors = self._reader.read(names)
        return {name: _tensor(tensors[name]).reshape(self._shapes[name]) for name in names}


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _tensor(stored: StoredTensor) -> Tensor:
    if stored.dtype == "bfloat16":
        return torch.from_numpy(stored.array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(stored.array)


def _changed(tensors: Mapping[str, Tensor], changes: Changes, precision: str) -> dict[str, Tensor]:
    """Those of some tensors that adapters change, as they are with them."""
    names = {plain_name(name): name for name in tensors}
    weights = {plain: tensors[name] for plain, name in names.items()}
    return {names[plain]: one for plain, one in changed_weights(weights, changes, precision)}


class _Recording(_Exchanging):
    """While it is entered, tensors have no content, and the names of those in use are noted."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.used: dict[str, None] = {}

    def _other(self, tensor: Tensor) -> Tensor:
        if (name := self._names.get(id(tensor))) is not None:
            self.used[name] = None
        return tensor if tensor.is_meta else tensor.to("meta")


def _used(
    module: nn.Module, component: Component, dtype: torch.dtype, names: Mapping[int, str]
) -> Collection[str]:
    """The weights in the order of their use, as far as that does not depend on values."""
    recording = _Recording(names)
    inputs = [one.to("meta") for one in example_inputs(component, dtype)]
    try:
        with torch.inference_mode(), recording:
            module(*inputs)
    except (NotImplementedError, RuntimeError):  # values decide: what follows is in its own order
        pass
    return recording.used
