"""Programs that are right at first: what only many calls, or calls of another kind, show."""

import time
from typing import Any, ClassVar

import numpy as np

from perfuse.backend import Component, Program, Target
from perfuse.sources import ArtifactStore
from perfuse_mutants.backend import Array, Arrays, Mutant, Run, Wrapped, role_of

__all__ = [
    "ClosesNothing",
    "Drifts",
    "DriftsLate",
    "DriftsSoon",
    "Leaks",
    "LeaksALittle",
    "LeaksPrograms",
    "OneInAHundred",
    "OneTable",
    "SharedScratch",
    "SharedStrides",
]


class Drifts(Mutant):
    """Is one per cent off after some calls, as a counter that overflows is."""

    name = "mutant-drifts"
    right = 200

    def spoil(self, component: Component, run: Run) -> Run:
        calls = 0

        def call(inputs: Arrays) -> Arrays:
            nonlocal calls
            calls += 1
            scale = np.float32(1.01 if calls > self.right else 1)
            return {"out_sample": run(inputs)["out_sample"] * scale}

        return call


class DriftsSoon(Drifts):
    """After a hundred."""

    name = "mutant-drifts-soon"
    right = 100


class DriftsLate(Drifts):
    """After three hundred."""

    name = "mutant-drifts-late"
    right = 300


class OneInAHundred(Mutant):
    """Gives one answer of a hundred to the last call's inputs, as a race does."""

    name = "mutant-one-in-a-hundred"

    def spoil(self, component: Component, run: Run) -> Run:
        random, last = np.random.default_rng(0), dict[tuple[int, ...], Arrays]()

        def call(inputs: Arrays) -> Arrays:
            shape = inputs["sample"].shape
            before = last.get(shape, inputs)
            last[shape] = {name: np.array(array) for name, array in inputs.items()}
            return run(before if random.random() < 0.01 else inputs)

        return call


class SharedStrides(Mutant):
    """Reads an array whose strides are negative from its lowest address on."""

    name = "mutant-negative-strides"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: run({name: _forward(array) for name, array in inputs.items()})


def _forward(array: Any) -> Any:
    turned = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)
    return array[turned] if array.ndim else array


class Leaks(Mutant):
    """Keeps what it computed with at each call: half a megabyte that nobody frees."""

    name = "mutant-leaks"
    size = 1 << 19

    def spoil(self, component: Component, run: Run) -> Run:
        kept: list[Any] = []

        def call(inputs: Arrays) -> Arrays:
            kept.append(np.ones(self.size, dtype=np.uint8))
            return run(inputs)

        return call


class LeaksALittle(Leaks):
    """Keeps 64 kilobytes at each call."""

    name = "mutant-leaks-a-little"
    size = 1 << 16


class LeaksPrograms(Mutant):
    """Keeps a megabyte of each program that was prepared: a cache of kernels that knows no end."""

    name = "mutant-leaks-programs"
    _kept: ClassVar[list[Any]] = []

    def spoil(self, component: Component, run: Run) -> Run:
        self._kept.append(np.ones(1 << 20, dtype=np.uint8))
        return run


class _Held(Wrapped):
    """A program with working memory of its own that closing does not free."""

    _closed: ClassVar[list[Any]] = []

    def __init__(self, component: Component, program: Program) -> None:
        super().__init__(component, program)
        self._memory = np.ones(4 << 20, dtype=np.uint8)

    def close(self) -> None:
        super().close()
        self._closed.append(self._memory)


class ClosesNothing(Mutant):
    """Holds a program's working memory when it is closed."""

    name = "mutant-closes-nothing"
    program_type = _Held


class _Counted(Wrapped):
    """One of the programs that are open."""

    count: ClassVar[int] = 0

    def __init__(self, component: Component, program: Program) -> None:
        super().__init__(component, program)
        self._open = True
        #: How many were open before it.
        self.before = type(self).count
        type(self).count += 1

    def close(self) -> None:
        type(self).count -= self._open
        self._open = False
        super().close()


class OneTable(Mutant):
    """Has a table of two programs' scales: a denoiser beyond them gets another one's."""

    name = "mutant-one-table"
    program_type = _Counted

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        program = super().prepare(component, target, store)
        assert isinstance(program, _Counted)
        if role_of(component) == "denoiser" and program.before >= 2:
            run = program.run
            program.run = lambda inputs: {"out_sample": run(inputs)["out_sample"] * 1.01}
        return program


class _Concurrent(Wrapped):
    """Says that it may be called from several threads, and keeps each call's inputs in one place."""

    concurrent = True

    def __call__(self, **inputs: Array) -> Arrays:
        self._inputs = inputs
        time.sleep(1e-4)  # another thread's turn
        return super().__call__(**self._inputs)


class SharedScratch(Mutant):
    """Is not fit for two threads, and says that it is."""

    name = "mutant-shared-scratch"
    program_type = _Concurrent
