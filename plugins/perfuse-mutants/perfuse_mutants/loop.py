"""Denoisers that remember: each call alone is right, or the first of each loop is wrong."""

from typing import Any

import numpy as np

from perfuse.backend import Component
from perfuse_mutants.backend import Arrays, Mutant, Run

__all__ = [
    "FeatureCache",
    "NearbyStep",
    "NegativeDecides",
    "OtherBranch",
    "OwnNoise",
    "StaleState",
    "TextLeft",
]

#: What the names of states begin with that a denoiser keeps for later steps, and of what decides
#: whether they are used.
_STATES, _SIGN = ("deep_state", "added"), "sign"
#: And that of what is kept of the text alone.
_TEXT = "added_text"


class OwnNoise(Mutant):
    """Starts every loop from noise of its own, of the same strength: the seed does nothing."""

    name = "mutant-own-noise"

    def spoil(self, component: Component, run: Run) -> Run:
        last: float | None = None

        def call(inputs: Arrays) -> Arrays:
            nonlocal last
            now = float(inputs["timestep"][0])
            begins = last is None or now > last
            last = now
            if not begins:
                return run(inputs)
            sample = inputs["sample"]
            noise = np.random.default_rng(42).standard_normal(sample.shape, dtype=np.float32)
            return run({**inputs, "sample": noise * sample.std()})

        return call


class FeatureCache(Mutant):
    """After six steps of a loop computes each third only, and gives the last result in between.

    The defaults of a cache that an engine had switched on for everyone.
    """

    name = "mutant-feature-cache"

    def spoil(self, component: Component, run: Run) -> Run:
        last: float | None = None
        step = 0
        kept: Any = None

        def call(inputs: Arrays) -> Arrays:
            nonlocal last, step, kept
            now = float(inputs["timestep"][0])
            continues = last is not None and now < last and kept.shape == inputs["sample"].shape
            step = step + 1 if continues else 0
            last = now
            if step < 6 or step % 3 == 0:
                kept = run(inputs)["out_sample"]
            return {"out_sample": kept.copy()}

        return call


class NearbyStep(Mutant):
    """Gives the last result again where the timestep has moved by ten or less."""

    name = "mutant-nearby-step"

    def spoil(self, component: Component, run: Run) -> Run:
        last: float | None = None
        kept: Any = None

        def call(inputs: Arrays) -> Arrays:
            nonlocal last, kept
            now = float(inputs["timestep"][0])
            near = last is not None and 0 < last - now <= 10
            if not near or kept.shape != inputs["sample"].shape:
                kept, last = run(inputs)["out_sample"], now
            return {"out_sample": kept.copy()}

        return call


class StaleState(Mutant):
    """Binds the kept state of a part of a denoiser once: each run has that of the first one.

    Of the picture before, then, where the memory of a run is not given up at its end.
    """

    name = "mutant-stale-state"

    def spoil(self, component: Component, run: Run) -> Run:
        kept: Arrays = {}

        def call(inputs: Arrays) -> Arrays:
            given = dict(inputs)
            for name, state in inputs.items():
                if name.startswith(_STATES):
                    first = kept.setdefault(name, np.array(state))
                    given[name] = first if first.shape == state.shape else state
            return run(given)

        return call


class OtherBranch(Mutant):
    """Gives each half of a batch the state that was kept for the other: the branches are swapped."""

    name = "mutant-other-branch"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            return run({n: _swapped(n, array, _STATES) for n, array in inputs.items()})

        return call


class NegativeDecides(Mutant):
    """Gives the branch with the prompt, which decides whether a step is computed, the other's sign."""

    name = "mutant-negative-decides"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            return {n: _swapped(n, array, (_SIGN,)) for n, array in run(inputs).items()}

        return call


class TextLeft(Mutant):
    """Leaves the text as the first blocks left it, where the last ones read what was kept of it."""

    name = "mutant-text-left"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            return run({n: 0 * one if n.startswith(_TEXT) else one for n, one in inputs.items()})

        return call


def _swapped(name: str, array: Any, which: tuple[str, ...]) -> Any:
    """The halves of a batch exchanged, if the name of the array begins so."""
    return np.roll(array, len(array) // 2, axis=0) if name.startswith(which) else array
