"""Programs that are right at first: what only many calls, or calls of another kind, show."""

from typing import Any

import numpy as np

from perfuse.backend import Component
from perfuse_mutants.backend import Arrays, Mutant, Run

__all__ = ["Drifts", "Leaks", "OneInAHundred", "SharedStrides"]


class Drifts(Mutant):
    """Is one per cent off after two hundred calls, as a counter that overflows is."""

    name = "mutant-drifts"

    def spoil(self, component: Component, run: Run) -> Run:
        calls = 0

        def call(inputs: Arrays) -> Arrays:
            nonlocal calls
            calls += 1
            scale = np.float32(1.01 if calls > 200 else 1)
            return {"out_sample": run(inputs)["out_sample"] * scale}

        return call


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

    def spoil(self, component: Component, run: Run) -> Run:
        kept: list[Any] = []

        def call(inputs: Arrays) -> Arrays:
            kept.append(np.ones(1 << 17, dtype=np.float32))
            return run(inputs)

        return call
