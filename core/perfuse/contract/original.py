"""How the tensors of a model class are stored in files older than Diffusers' layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perfuse.contract.frozen import FrozenDict

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

__all__ = ["Original", "Shapes", "Stacked", "View"]

#: Tensor name to its dtype and shape.
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """A layer of a file that is several of the model's, one above the other, or one turned about."""

    #: The model's layers, from the first row on.
    layers: tuple[str, ...]
    #: How many parts of the rows each has; as many each where none are named.
    shares: tuple[int, ...] = ()
    #: Whether the second half of the rows comes first in the model.
    swapped: bool = False


@dataclass(frozen=True, kw_only=True)
class View:
    """One tensor of a model, as a part of a stored one; transposed and swapped ones are copied."""

    #: The name of the stored tensor.
    stored: str
    #: The shape of this tensor.
    shape: tuple[int, ...]
    #: The rows of the stored tensor that it is, first and past the last; ``None`` for all.
    rows: tuple[int, int] | None = None
    #: Whether the stored tensor is a matrix the other way round.
    transposed: bool = False
    #: Whether the second half of the stored tensor comes first.
    swapped: bool = False

    def of(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """This tensor, of the stored one."""
        if self.rows is not None:
            tensor = tensor[slice(*self.rows)]
        if self.transposed:
            tensor = tensor.T.contiguous()  # a matrix product of a strided one rounds otherwise
        if self.swapped:
            tensor = tensor.roll(len(tensor) // 2, 0)
        return tensor.reshape(self.shape)

    def of_array(self, array: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
        """The same of an array."""
        import numpy as np  # listing plugins reads this module, and loads no library

        rows = array if self.rows is None else array[slice(*self.rows)]
        if self.swapped:
            half = len(rows) // 2
            rows = np.concatenate([rows[half:], rows[:half]])
        return (rows.T.copy() if self.transposed else rows).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class Original:
    """A model as a file in its original layout holds it."""

    #: ``config.json``, as far as the tensors' names and shapes tell it.
    config: Mapping[str, Any]
    #: The model's tensors by Diffusers' names.
    views: Mapping[str, View]

    def __post_init__(self) -> None:
        for name in ("config", "views"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))
