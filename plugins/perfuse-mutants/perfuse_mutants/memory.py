"""Programs that keep, share or misread memory, and one that is not the same twice."""

import ctypes
from typing import Any, ClassVar

import numpy as np

from perfuse.backend import Component
from perfuse_mutants.backend import Arrays, Mutant, Run

__all__ = [
    "AddressCache",
    "BoundText",
    "IgnoredStrides",
    "Nondeterministic",
    "OverwrittenInput",
    "ReusedOutput",
    "SharedOutput",
]

_EVERY = ("denoiser", "text", "decoder", "encoder")


class OverwrittenInput(Mutant):
    """Writes the prediction into the sample's memory, and returns that."""

    name = "mutant-overwritten-input"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            predicted, sample = run(inputs)["out_sample"], inputs["sample"]
            fits = predicted.shape == sample.shape and predicted.strides == sample.strides
            if not fits or predicted.dtype != sample.dtype:
                return {"out_sample": predicted}
            # An engine writes through the address; it knows nothing of numpy's read-only flag.
            ctypes.memmove(sample.ctypes.data, predicted.ctypes.data, predicted.nbytes)
            return {"out_sample": sample}

        return call


class Nondeterministic(Mutant):
    """Adds noise of half a unit in the last place, other noise each time: no tolerance shows it."""

    name = "mutant-nondeterministic"

    def spoil(self, component: Component, run: Run) -> Run:
        random = np.random.default_rng()

        def call(inputs: Arrays) -> Arrays:
            predicted = run(inputs)["out_sample"]
            noise = random.uniform(-1, 1, size=predicted.shape).astype(np.float32)
            return {"out_sample": predicted + noise * np.float32(2**-24) * np.abs(predicted)}

        return call


class BoundText(Mutant):
    """Binds the text's memory on the first call and reads it there on every other."""

    name = "mutant-bound-text"

    def spoil(self, component: Component, run: Run) -> Run:
        bound: Any = None

        def call(inputs: Arrays) -> Arrays:
            nonlocal bound
            states = inputs.get("encoder_hidden_states")
            if states is None:
                return run(inputs)
            if bound is None or bound.shape != states.shape:
                bound = states
            return run({**inputs, "encoder_hidden_states": bound})

        return call


class AddressCache(Mutant):
    """Takes inputs that lie where the last call's lay for the last call's inputs."""

    name = "mutant-address-cache"
    roles = _EVERY

    def spoil(self, component: Component, run: Run) -> Run:
        held: Arrays = {}
        kept: Arrays = {}

        def call(inputs: Arrays) -> Arrays:
            nonlocal held, kept
            # Held, so that no other array can get the address.
            same = held.keys() == inputs.keys() and all(
                _place(held[name]) == _place(array) for name, array in inputs.items()
            )
            if not same:
                held, kept = inputs, run(inputs)
            return {name: array.copy() for name, array in kept.items()}

        return call


def _place(array: Any) -> tuple[Any, ...]:
    return array.ctypes.data, array.shape, array.strides, array.dtype


class SharedOutput(Mutant):
    """One arena for the outputs of all programs: the next one's lie where the last one's lay."""

    name = "mutant-shared-output"
    roles = _EVERY
    _arena: ClassVar[Any] = np.empty(1 << 20, dtype=np.float32)

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            placed: Arrays = {}
            start = 0
            for name, array in run(inputs).items():
                if start + array.size > self._arena.size:
                    placed[name] = array
                    continue
                placed[name] = self._arena[start : start + array.size].reshape(array.shape)
                placed[name][...] = array
                start += array.size
            return placed

        return call


class ReusedOutput(Mutant):
    """Each program has memory of its own for its outputs, and writes there at every call."""

    name = "mutant-reused-output"
    roles = _EVERY

    def spoil(self, component: Component, run: Run) -> Run:
        held: Arrays = {}

        def call(inputs: Arrays) -> Arrays:
            for name, array in run(inputs).items():
                if name in held and held[name].shape == array.shape:
                    held[name][...] = array
                else:
                    held[name] = array
            return dict(held)

        return call


class IgnoredStrides(Mutant):
    """Reads each input's memory from its first byte on, row by row, however it really lies."""

    name = "mutant-ignored-strides"
    roles = _EVERY

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: run({name: _packed(array) for name, array in inputs.items()})


def _packed(array: Any) -> Any:
    """What lies in memory, in the order that it lies in; a view with gaps or repeats as it is."""
    in_order = array.ravel(order="K")
    return in_order.reshape(array.shape) if np.shares_memory(in_order, array) else array
