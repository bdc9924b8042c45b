"""Runs any batch size on a program with a fixed batch size."""

import numpy as np

from perfuse.arrays.operations import concatenate, is_torch
from perfuse.contract.backend import ExecutionReport, Program
from perfuse.contract.component import Component
from perfuse.contract.spec import Array, TensorSpec

__all__ = ["FixedBatch", "fixed_batch", "whole_inputs"]


class FixedBatch(Program):
    """Splits a batch into parts of the program's batch size, and pads the last part.

    Needed because guidance doubles the batch and several prompts multiply it.

    Args:
        program: What runs a part.
        size: Its batch size.
        whole: Inputs that have no batch, and go into every part as they are: tables of positions.
    """

    def __init__(self, program: Program, size: int, *, whole: frozenset[str] = frozenset()) -> None:
        self._program = program
        self._size = size
        self._whole = whole
        self.torch_device = program.torch_device
        self.signature = program.signature

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        size = self._size
        total = len(next(iter(inputs.values())))
        if total == size:
            return self._program(**inputs)
        parts: list[dict[str, Array]] = []
        for start in range(0, total, size):
            chunk = {
                name: a if name in self._whole else _padded(a[start : start + size], size)
                for name, a in inputs.items()
            }
            parts.append(self._program(**chunk))
        return {name: concatenate([part[name] for part in parts])[:total] for name in parts[0]}

    def rebind(self, component: Component) -> bool:
        return self._program.rebind(component)

    def report(self) -> ExecutionReport:
        return self._program.report()

    def close(self) -> None:
        self._program.close()


def _padded(array: Array, size: int) -> Array:
    missing = size - len(array)
    if missing == 0:
        return array
    if is_torch(array):
        return concatenate([array, *[array[-1:]] * missing])
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def whole_inputs(tensors: tuple[TensorSpec, ...]) -> frozenset[str]:
    """The inputs whose first axis is not the batch; none where the signature names no batch."""
    batched = {one.name for one in tensors if one.shape and one.shape[0] == "batch"}
    return frozenset(one.name for one in tensors if one.name not in batched and batched)


def fixed_batch(tensors: tuple[TensorSpec, ...]) -> int | None:
    """The batch size that a signature fixes; ``None`` where it is symbolic."""
    first = tensors[0].shape[0]
    return first if isinstance(first, int) else None
