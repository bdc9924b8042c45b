"""The simulated accelerator, as its driver shows it to a program: memory, copies, a queue.

It enforces what makes accelerators unlike the host:

- device memory is a space of its own: a ``Buffer`` is a handle without contents, and what is in it
  comes and goes by ``copy_in`` and ``copy_out`` alone;
- it is small: what does not fit is refused, with numbers;
- launches return at once; what goes wrong is said by ``synchronize``, before which nothing can be
  copied out.
"""

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from perfuse.errors import ExecutionError
from torch import Tensor

from perfuse_openreg import kernels
from perfuse_openreg.hardware import ITEM_SIZES, Hardware, readable

__all__ = ["Accelerator", "Buffer", "Region", "accelerator"]


class Region:
    """Memory to allocate from: all of a device's, or a part that was reserved for a program."""

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self.used = 0
        self._name = name

    @property
    def free(self) -> int:
        return self.size - self.used

    def take(self, size: int) -> None:
        """Raise ``ExecutionError`` where it does not fit."""
        if size > self.free:
            raise ExecutionError(
                f"{readable(size)} were to be allocated; {readable(self.free)} of "
                f"{readable(self.size)} are free in {self._name}."
            )
        self.used += size


@dataclass(frozen=True, eq=False)
class Buffer:
    """A handle to device memory. The host cannot look through it."""

    device: str
    address: int
    dtype: str
    shape: tuple[int, ...]
    region: Region

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    def __array__(self, *_: Any, **__: Any) -> npt.NDArray[Any]:
        raise ExecutionError(f"{self} is in device memory; copy it out before the host reads it.")

    def __str__(self) -> str:
        return f"buffer {self.address} of openreg:{self.device}"


class Accelerator:
    """One device, for the whole process: every program on it shares its memory and its queue."""

    def __init__(self, hardware: Hardware, memory: int) -> None:
        self.name = hardware.name
        self.memory = Region(memory, f"openreg:{hardware.name}")
        #: Held while a program runs: the queue is one.
        self.lock = threading.RLock()
        self._addresses = itertools.count(1)
        self._handles: dict[int, Buffer] = {}
        self._freed: set[int] = set()  # by the host; the queue may need them still
        self._contents: dict[int, Tensor] = {}  # what is in device memory: no one else's to touch
        self._queue: deque[Callable[[], None] | Buffer] = deque()  # to run, or to free

    def reserve(self, size: int) -> Region:
        """Set a region apart, so that what is planned for it cannot fail to fit later.

        Raises:
            ExecutionError: it does not fit.
        """
        self.memory.take(size)
        return Region(size, f"a workspace on openreg:{self.name}")

    def release(self, region: Region) -> None:
        """Give a region back, with what is in it."""
        self.clear(region)
        self.memory.used -= region.size

    def clear(self, region: Region) -> None:
        """Free everything in a region at once."""
        for buffer in list(self._handles.values()):
            if buffer.region is region:
                self._forget(buffer)

    def copy_in(
        self, array: npt.NDArray[Any] | Tensor, dtype: str, region: Region | None = None
    ) -> Buffer:
        """Copy an array of the host into device memory, rounded to a type.

        Raises:
            ExecutionError: it does not fit.
        """
        buffer = self._name(dtype, tuple(array.shape), region)
        try:
            if not isinstance(array, Tensor):
                # PyTorch takes neither negative strides nor memory that cannot be written.
                array = torch.from_numpy(np.array(array, order="C"))
            self._store(buffer, array.detach().to(_torch(dtype), copy=True))
        except ExecutionError:
            self._forget(buffer)
            raise
        return buffer

    def copy_out(self, buffer: Buffer) -> npt.NDArray[Any]:
        """Copy a buffer to the host; floating-point types arrive as float32.

        Raises:
            ExecutionError: the queue is not empty, or the buffer is not this device's to read.
        """
        self._check(buffer)
        if self._queue:
            raise ExecutionError(
                f"{buffer} was to be copied out; {len(self._queue)} launches are waiting. "
                "Synchronise first."
            )
        tensor = self._read(buffer)
        array: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return array.copy()

    def launch(
        self,
        operator: str,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        results: Sequence[tuple[str, tuple[int, ...]] | None],
        region: Region | None = None,
    ) -> list[Buffer | None]:
        """Queue an operator and return handles to what it will make; it has not run yet.

        Args:
            operator: In the table of ``kernels``.
            arguments: Buffers and plain values, and lists of them.
            options: The same, by name.
            results: The type and shape of each result; ``None`` for one that is not wanted.
            region: Where the results go.

        Raises:
            ExecutionError: there is no such operator, or an argument is not in this device's
                memory.
        """
        if operator not in kernels.KERNELS:
            raise ExecutionError(f"{operator} was launched; openreg has no such operator.")
        for buffer in _buffers([*arguments, *options.values()], operator):
            self._check(buffer)
        made = [self._name(*one, region) if one is not None else None for one in results]

        def work() -> None:
            given = {name: self._resolved(option) for name, option in options.items()}
            found = kernels.run(operator, self._resolved(list(arguments)), given)
            if len(found) != len(made):
                raise ExecutionError(
                    f"{operator} made {len(found)} results; the program states {len(made)}."
                )
            for buffer, tensor in zip(made, found, strict=True):
                if buffer is not None:
                    self._store(buffer, tensor.to(_torch(buffer.dtype)).contiguous())

        self._queue.append(work)
        return made

    def free(self, buffer: Buffer) -> None:
        """Free a buffer once everything that was launched before has run."""
        self._check(buffer)
        self._freed.add(buffer.address)
        self._queue.append(buffer)

    def synchronize(self) -> None:
        """Wait for everything that was launched.

        Raises:
            ExecutionError: one of them failed; those after it have not run.
        """
        failure: ExecutionError | None = None
        while self._queue:
            entry = self._queue.popleft()
            if isinstance(entry, Buffer):
                self._forget(entry)
            elif failure is None:
                try:
                    entry()
                except ExecutionError as exc:
                    failure = exc
        if failure is not None:
            raise failure

    def abandon(self) -> None:
        """Drop what was launched and has not run."""
        self._queue.clear()

    def _name(self, dtype: str, shape: tuple[int, ...], region: Region | None) -> Buffer:
        where = region if region is not None else self.memory
        buffer = Buffer(self.name, next(self._addresses), dtype, shape, where)
        self._handles[buffer.address] = buffer
        return buffer

    def _store(self, buffer: Buffer, tensor: Tensor) -> None:
        if tuple(tensor.shape) != buffer.shape:
            raise ExecutionError(
                f"{buffer} is of shape {buffer.shape}; {tuple(tensor.shape)} was to be put there."
            )
        buffer.region.take(buffer.size)
        self._contents[buffer.address] = tensor

    def _read(self, buffer: Buffer) -> Tensor:
        if buffer.address not in self._contents:
            raise ExecutionError(f"{buffer} holds nothing: what was to fill it has failed.")
        return self._contents[buffer.address]

    def _forget(self, buffer: Buffer) -> None:
        self._handles.pop(buffer.address, None)
        self._freed.discard(buffer.address)
        if self._contents.pop(buffer.address, None) is not None:
            buffer.region.used -= buffer.size

    def _check(self, buffer: Buffer) -> None:
        if buffer.device != self.name:
            raise ExecutionError(f"{buffer} was given to openreg:{self.name}; copy it there first.")
        if buffer.address not in self._handles or buffer.address in self._freed:
            raise ExecutionError(f"{buffer} was freed; it cannot be used any more.")

    def _resolved(self, argument: Any) -> Any:
        if isinstance(argument, Buffer):
            return self._read(argument)
        if isinstance(argument, list):
            return [self._resolved(one) for one in argument]
        return argument


def _torch(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype)
    return found


def _buffers(arguments: Sequence[Any], operator: str) -> Iterator[Buffer]:
    for argument in arguments:
        if isinstance(argument, Buffer):
            yield argument
        elif isinstance(argument, list):
            yield from _buffers(argument, operator)
        elif isinstance(argument, np.ndarray | Tensor):
            raise ExecutionError(
                f"{operator} was given a host array of shape {tuple(argument.shape)}; a kernel "
                "takes device buffers. Copy it in first."
            )


@cache
def accelerator(hardware: Hardware, memory: int) -> Accelerator:
    """The device, the same for everyone; one of another memory size is another device."""
    return Accelerator(hardware, memory)
