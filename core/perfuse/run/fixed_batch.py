"""Runs any batch size on a program with a fixed batch size."""

import numpy as np

from perfuse.arrays.operations import concatenate, is_torch
from perfuse.contract.backend import ExecutionReport, Program
from perfuse.contract.spec import Array, TensorSpec

__all__ = ["FixedBatch"]


class FixedBatch(Program):
    """Splits a batch into parts of the program's batch size, and pads the last part.

    Needed because guidance doubles the batch and several prompts multiply it.
    """

    def __init__(self, program: Program, size: int) -> None:
        self._program = program
        self._size = size
        self.torch_device = program.torch_device
        self.signature = program.signature

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        size = self._size
        total = len(next(iter(inputs.values())))
        if total == size:
            return self._program(**inputs)
        parts: list[dict[str, Array]] = []
        for start in range(0, total, size):
            chunk = {name: _padded(a[start : start + size], size) for name, a in inputs.items()}
            parts.append(self._program(**chunk))
        return {name: concatenate([part[name] for part in parts])[:total] for name in parts[0]}

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


def fixed_batch(tensors: tuple[TensorSpec, ...]) -> int | None:
    """The batch size that a signature fixes; ``None`` where it is symbolic."""
    first = tensors[0].shape[0]
    return first if isinstance(first, int) else None
