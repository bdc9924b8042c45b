"""Weights as named tensors, and which of a graph's constants are made of them.

A graph does not depend on weights: an exporter writes it without them, with a weight map beside it.
The map is plain data, so that whoever has the tensors can bind them without building the model.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perfuse.contract.changes import plain_name
from perfuse.contract.frozen import FrozenDict
from perfuse.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

__all__ = ["Change", "Constant", "Reader", "StoredTensor", "WeightMap"]

_FLOATS = ("float32", "float16", "bfloat16")
_BFLOAT16 = "bfloat16"


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """The values of a tensor, where they are: often in a mapped file. Do not write to them."""

    #: ``"float16"``, ``"int64"``, …
    dtype: str
    #: The values; of bfloat16, which numpy has not, the bits as uint16.
    array: "npt.NDArray[Any]"

    @classmethod
    def of(cls, tensor: "torch.Tensor") -> "StoredTensor":
        """A torch tensor, in the same memory where that is the CPU's."""
        import numpy as np
        import torch

        blocks: StoredTensor | None = getattr(tensor, "blocks", None)
        if blocks is not None:  # integers, which the file of a checkpoint has
            return blocks
        plain = tensor.detach().cpu().contiguous()
        dtype = str(plain.dtype).removeprefix("torch.")
        if plain.is_floating_point() and dtype not in _FLOATS:
            plain, dtype = plain.float(), "float32"
        if dtype == _BFLOAT16:
            return cls(dtype=dtype, array=plain.view(torch.int16).numpy().view(np.uint16))
        return cls(dtype=dtype, array=plain.numpy())

    @classmethod
    def all_of(cls, module: "nn.Module") -> "dict[str, StoredTensor]":
        """The parameters and buffers of a module, by their names."""
        tensors = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        return {name: cls.of(tensor) for name, tensor in tensors.items()}

    @property
    def floating(self) -> bool:
        return self.dtype in _FLOATS

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def digest(self) -> str:
        """Identifies dtype, shape and values, of which it reads all; it begins with the dtype."""
        said = f"{self.array.shape} ".encode()
        return f"{self.dtype} {hashlib.sha256(said + self.array.tobytes()).hexdigest()}"

    def cast(self, dtype: str) -> "StoredTensor":
        """The values in another dtype, rounded to nearest; itself where it has that dtype."""
        import numpy as np

        if dtype == self.dtype:
            return self
        if self.dtype == _BFLOAT16:
            full = (self.array.astype(np.uint32) << 16).view(np.float32)
        else:
            full = self.array.astype(np.float32, copy=False)
        if dtype == _BFLOAT16:
            return StoredTensor(dtype=dtype, array=_bits(full))
        with np.errstate(over="ignore"):  # who cares asks whether all are finite
            return StoredTensor(dtype=dtype, array=full.astype(dtype))

    def changed(self, changes: "tuple[Change, ...]") -> "StoredTensor":
        """The tensor after changes of its layout, contiguous."""
        import numpy as np

        array = self.array
        for change in changes:
            array = change.of(array)
        return StoredTensor(dtype=self.dtype, array=np.ascontiguousarray(array))


def _bits(values: "npt.NDArray[np.float32]") -> "npt.NDArray[np.uint16]":
    """The nearest bfloat16 of each number, ties to even, as its bits."""
    import numpy as np

    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """Reads some tensors of a module at a time, so that what nobody holds any more takes no memory."""

    #: Those that it can read.
    names: frozenset[str]
    #: Gives tensors by their names, memory-mapped anew. Their shapes may differ from the module's by axes
    #: of size 1.
    read: Callable[[Collection[str]], Mapping[str, StoredTensor]]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is done to the layout of a tensor before a graph reads it."""

    #: ``"transpose"`` or ``"reshape"``.
    kind: str
    #: The axes in their new order, or the new shape.
    sizes: tuple[int, ...]

    def of(self, array: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
        """An array after it."""
        if self.kind == "transpose":
            return array.transpose(self.sizes)
        return array.reshape(self.sizes)

    def undone(self, array: "npt.NDArray[Any]", before: tuple[int, ...]) -> "npt.NDArray[Any]":
        """What an array was before it, of that shape."""
        import numpy as np

        if self.kind == "transpose":
            return array.transpose(np.argsort(self.sizes))
        return array.reshape(before)

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """The shape after it."""
        return tuple(before[i] for i in self.sizes) if self.kind == "transpose" else self.sizes


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One constant of a graph: the tensor that it is, and what is done to that."""

    #: The tensor's name in the module's ``state_dict``.
    tensor: str
    #: What the graph takes: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    dtype: str
    #: The tensor's shape, before its changes.
    shape: tuple[int, ...]
    #: Changes of its layout, in order.
    changes: tuple[Change, ...] = ()

    @property
    def size(self) -> int:
        """Bytes in the graph."""
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 2)

    @property
    def final_shape(self) -> tuple[int, ...]:
        """The shape after its changes."""
        shape = self.shape
        for change in self.changes:
            shape = change.shape(shape)
        return shape

    def undone(self, tensor: StoredTensor) -> StoredTensor:
        """The tensor before the changes of its layout, of one that had them."""
        shapes = [self.shape]
        for change in self.changes:
            shapes.append(change.shape(shapes[-1]))
        array = tensor.array
        for change, before in zip(reversed(self.changes), reversed(shapes[:-1]), strict=True):
            array = change.undone(array, before)
        return StoredTensor(dtype=tensor.dtype, array=array)

    def of(self, tensor: StoredTensor, *, exact: bool = False) -> StoredTensor:
        """The tensor, before the changes of its layout, in a dtype that the graph can take.

        Args:
            tensor: The tensor of that name.
            exact: Whether it is to have the graph's dtype. Otherwise one in fewer bits stays as and
                where it is, and the engine widens it.

        Raises:
            ExportError: it has numbers that the graph's dtype cannot hold.
        """
        import numpy as np

        shaped = StoredTensor(dtype=tensor.dtype, array=tensor.array.reshape(self.shape))
        if tensor.dtype == self.dtype or (self.dtype == "float32" and not exact):
            return shaped
        cast = shaped.cast(self.dtype)
        if self.dtype == "float16" and not np.isfinite(cast.array).all():
            raise ExportError(
                f"{self.tensor} was to be written in float16, which ends at 65504; the tensor "
                "exceeds it. Use --precision float32."
            )
        return cast


@dataclass(frozen=True, kw_only=True)
class WeightMap:
    """Which constants of a graph are which tensors of a module; all others are in the graph."""

    #: The name of a constant in the graph to what it is.
    constants: Mapping[str, Constant]
    #: The tensors of the module that the graph holds itself, because they are integers or computed
    #: from the config, to their digests: a module where they differ has another graph.
    held: Mapping[str, str] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        for name in ("constants", "held"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    @classmethod
    def around(
        cls,
        constants: Mapping[str, Constant],
        tensors: Mapping[str, StoredTensor],
        bound: Container[str],
    ) -> "WeightMap":
        """The map of a graph with these constants.

        Args:
            constants: The constants that are tensors of the module.
            tensors: All tensors of the module.
            bound: The names of those that the graph holds no values of.
        """
        held = {name: one.digest for name, one in tensors.items() if name not in bound}
        return cls(constants=constants, held=held)

    def only(self, names: Container[str]) -> "WeightMap":
        """The constants that are weights of these names in the model's state dict."""
        found = {n: one for n, one in self.constants.items() if plain_name(one.tensor) in names}
        return WeightMap(constants=found)

    @property
    def size(self) -> int:
        """Bytes of all constants."""
        return sum(one.size for one in self.constants.values())

    def fits(self, tensors: Mapping[str, StoredTensor]) -> bool:
        """Whether a module with these tensors has the graph of this map."""
        constants = self.constants.values()
        return all(
            one.tensor in tensors
            and tensors[one.tensor].floating
            and tensors[one.tensor].shape == one.shape
            for one in constants
        ) and all(
            name in tensors and tensors[name].digest == digest for name, digest in self.held.items()
        )
