"""Small helpers to treat numpy arrays and torch tensors alike without importing torch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from perfuse.arrays.noise import noise_for

__all__ = ["TensorView", "as_scalar", "cast", "draw", "host", "like", "promoted", "torch_here"]


def torch_here() -> Any:
    """torch if the process has imported it, else None."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "from_numpy") else None


class TensorView:
    """A scheduler's numpy array, shown as a torch tensor where the process has torch imported.

    The array itself is kept under the same name with an underscore; what is assigned goes there.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.kept, self.seen = name, f"_{name}", f"_{name}_seen"

    def __get__(self, scheduler: Any, owner: type | None = None) -> Any:
        if scheduler is None:
            return self
        attributes = scheduler.__dict__
        if self.kept not in attributes:
            raise AttributeError(f"{type(scheduler).__name__!r} object has no {self.name!r}")
        values, torch = attributes[self.kept], torch_here()
        if values is None or torch is None:
            return values
        made_of, tensor = attributes.get(self.seen, (None, None))
        if made_of is not values:
            tensor = torch.from_numpy(np.array(values))
            attributes[self.seen] = values, tensor
        return tensor

    def __set__(self, scheduler: Any, value: Any) -> None:
        values = None if value is None else host(value)
        scheduler.__dict__[self.kept] = values
        if hasattr(value, "detach"):
            scheduler.__dict__[self.seen] = values, value


def host(values: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Numbers, an array or a tensor as a numpy array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def like(values: Any, array: Any) -> Any:
    """numpy values as an array of the kind and device of ``array``."""
    if isinstance(array, np.ndarray) or not hasattr(array, "detach"):
        return values
    return sys.modules["torch"].from_numpy(np.ascontiguousarray(values)).to(array.device)


def promoted(a: Any, b: Any) -> Any:
    """The dtype that an operation between the two would have."""
    if isinstance(a, np.ndarray):
        return np.result_type(a, b)
    return sys.modules["torch"].promote_types(a.dtype, b.dtype)


def cast(array: Any, dtype: Any) -> Any:
    """The array in this dtype, itself where it already is."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    return array.to(dtype)


def draw(array: Any, generator: Any, dtype: Any = None) -> Any:
    """Unit noise of the shape, kind and device of ``array``, in ``dtype`` or else in float32.

    ``generator`` is a ``torch.Generator``, anything with ``.normal(shape)``, a list with one of
    these a picture, or None for noise that nobody can draw again (torch's own where there is
    torch). torch draws another stream in half precision than in single: ``dtype`` says which.
    """
    shape = tuple(array.shape)
    if hasattr(array, "detach"):
        torch = sys.modules["torch"]
        dtype = torch.float32 if dtype is None else dtype
        alone = isinstance(generator, list) and len(generator) == 1
        one = generator[0] if alone else generator
        if one is None or isinstance(one, torch.Generator):
            return _randn(torch, shape, one, array.device, dtype)
        if isinstance(one, list) and all(isinstance(g, torch.Generator) for g in one):
            noise_for(generator=one, batch=shape[0])  # raises if they are too few
            rows = [_randn(torch, (1, *shape[1:]), g, array.device, dtype) for g in one]
            return torch.cat(rows)
    return like(noise_for(generator=generator, batch=shape[0]).normal(shape), array)


def _randn(torch: Any, shape: tuple[int, ...], generator: Any, device: Any, dtype: Any) -> Any:
    where = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=where, dtype=dtype).to(device)


def as_scalar(values: Any) -> Any:
    """The one number of an array: a torch scalar where torch is imported, else numpy's."""
    torch, value = torch_here(), np.asarray(values).reshape(())
    return value[()] if torch is None else torch.from_numpy(np.array(value))
