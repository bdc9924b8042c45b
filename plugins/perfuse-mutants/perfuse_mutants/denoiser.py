"""Denoisers whose numbers are wrong: one call is enough to see it, if it is the right one."""

from typing import Any

import numpy as np

from perfuse.backend import Component
from perfuse_mutants.backend import Arrays, Mutant, Run

__all__ = [
    "BatchLeak",
    "BatchPadding",
    "Channels",
    "Clamped",
    "DefaultSize",
    "DroppedGuidance",
    "HalfText",
    "LastToken",
    "Nan",
    "OddSizes",
    "Scale",
    "SwappedPrompts",
    "TimestepCond",
    "TimestepFirst",
    "TimestepHalf",
    "TimestepOffByOne",
    "TimestepRounded",
    "TimestepTruncated",
    "Transposed",
]


def _changed(run: Run, name: str, change: Any) -> Run:
    """``run`` with one of its inputs replaced by ``change(input)``."""
    return lambda inputs: run({**inputs, name: change(inputs[name])})


def _is_guided(inputs: Arrays) -> bool:
    """Both halves of the batch hold the same sample, as under classifier-free guidance."""
    sample = inputs["sample"]
    half = len(sample) // 2
    return len(sample) % 2 == 0 and np.array_equal(sample[:half], sample[half:])


class Nan(Mutant):
    """One NaN in the last item, near the end of the schedule alone: an overflow of clean samples."""

    name = "mutant-nan"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            predicted = run(inputs)["out_sample"]
            if inputs["timestep"][-1] < 50:
                predicted[-1, 0, 0, 0] = np.nan
            return {"out_sample": predicted}

        return call


class Scale(Mutant):
    """One per cent too large."""

    name = "mutant-scale"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: {"out_sample": run(inputs)["out_sample"] * np.float32(1.01)}


class Channels(Mutant):
    """The first two channels are exchanged."""

    name = "mutant-channels"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            predicted = run(inputs)["out_sample"]
            order = [1, 0, *range(2, predicted.shape[1])]
            return {"out_sample": np.ascontiguousarray(predicted[:, order])}

        return call


class Clamped(Mutant):
    """Saturates at three standard deviations."""

    name = "mutant-clamped"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: {"out_sample": run(inputs)["out_sample"].clip(-3.0, 3.0)}


class TimestepOffByOne(Mutant):
    """Counts timesteps from one."""

    name = "mutant-timestep-off-by-one"

    def spoil(self, component: Component, run: Run) -> Run:
        return _changed(run, "timestep", lambda timestep: timestep + np.float32(1))


class TimestepTruncated(Mutant):
    """Has a timestep of whole numbers, and cuts the fractions of Euler's off."""

    name = "mutant-timestep-truncated"

    def spoil(self, component: Component, run: Run) -> Run:
        return _changed(run, "timestep", np.trunc)


class TimestepRounded(Mutant):
    """Rounds timesteps to whole numbers."""

    name = "mutant-timestep-rounded"

    def spoil(self, component: Component, run: Run) -> Run:
        return _changed(run, "timestep", np.rint)


class TimestepHalf(Mutant):
    """Takes the timestep in float16, which counts in halves above 512."""

    name = "mutant-timestep-half"

    def spoil(self, component: Component, run: Run) -> Run:
        return _changed(run, "timestep", lambda t: t.astype(np.float16).astype(np.float32))


class TimestepFirst(Mutant):
    """Has one timestep for the whole batch, the first item's."""

    name = "mutant-timestep-first"

    def spoil(self, component: Component, run: Run) -> Run:
        return _changed(run, "timestep", lambda t: np.full_like(t, t[0]))


class TimestepCond(Mutant):
    """Drops the guidance embedding of a latent consistency model."""

    name = "mutant-timestep-cond"

    def spoil(self, component: Component, run: Run) -> Run:
        if "timestep_cond" not in component.spec.signature.input_names:
            return run
        return _changed(run, "timestep_cond", np.zeros_like)


class DroppedGuidance(Mutant):
    """Computes the prompt's half of a guided batch and copies it: guidance does nothing."""

    name = "mutant-dropped-guidance"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            if not _is_guided(inputs):
                return run(inputs)
            half = len(inputs["sample"]) // 2
            prompted = run(inputs)["out_sample"][half:]
            return {"out_sample": np.concatenate([prompted, prompted])}

        return call


class SwappedPrompts(Mutant):
    """Under guidance, takes the prompt for the negative prompt and the other way round."""

    name = "mutant-swapped-prompts"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            if not _is_guided(inputs):
                return run(inputs)
            states = inputs["encoder_hidden_states"]
            swapped = np.roll(states, len(states) // 2, axis=0)
            return run({**inputs, "encoder_hidden_states": swapped})

        return call


class LastToken(Mutant):
    """Reads every token of the text but the last."""

    name = "mutant-last-token"

    def spoil(self, component: Component, run: Run) -> Run:
        return _changed(run, "encoder_hidden_states", lambda states: states[:, :-1])


class HalfText(Mutant):
    """Reads the first half of the tokens; the rest is zeros."""

    name = "mutant-half-text"

    def spoil(self, component: Component, run: Run) -> Run:
        def cut(states: Any) -> Any:
            kept = states.copy()
            kept[:, states.shape[1] // 2 :] = 0
            return kept

        return _changed(run, "encoder_hidden_states", cut)


class Transposed(Mutant):
    """Exchanges height and width in what it says of the sample's memory: the same for squares."""

    name = "mutant-transposed"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            batch, channels, height, width = inputs["sample"].shape
            sample = np.ascontiguousarray(inputs["sample"]).reshape(batch, channels, width, height)
            predicted = run({**inputs, "sample": sample})["out_sample"]
            return {"out_sample": predicted.reshape(batch, -1, height, width)}

        return call


class DefaultSize(Mutant):
    """Computes at the size that the model was made for, whatever was asked, and resizes."""

    name = "mutant-default-size"

    def spoil(self, component: Component, run: Run) -> Run:
        size = component.spec.config.get("sample_size") or 64
        usual = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

        def call(inputs: Arrays) -> Arrays:
            sample = _resized(inputs["sample"], usual)
            predicted = run({**inputs, "sample": sample})["out_sample"]
            return {"out_sample": _resized(predicted, inputs["sample"].shape[2:])}

        return call


def _resized(sample: Any, size: tuple[int, ...]) -> Any:
    """[B, C, H, W] with the nearest pixels taken."""
    old = sample.shape[2:]
    rows, columns = (np.arange(new) * was // new for new, was in zip(size, old, strict=True))
    return np.ascontiguousarray(sample[:, :, rows][:, :, :, columns])


class OddSizes(Mutant):
    """Leaves the last row out where the height is odd, and repeats the one before."""

    name = "mutant-odd-sizes"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            predicted = run(inputs)["out_sample"]
            if predicted.shape[2] % 2:
                predicted[:, :, -1] = predicted[:, :, -2]
            return {"out_sample": predicted}

        return call


class BatchLeak(Mutant):
    """Gives every item the spread of the whole batch."""

    name = "mutant-batch-leak"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            predicted = run(inputs)["out_sample"]
            if len(predicted) > 1:
                own = predicted.std(axis=(1, 2, 3), keepdims=True)
                predicted *= predicted.std() / own
            return {"out_sample": predicted}

        return call


class BatchPadding(Mutant):
    """Computes in pairs; the odd item left over gets the result of the one before."""

    name = "mutant-batch-padding"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            predicted = run(inputs)["out_sample"]
            if len(predicted) > 1 and len(predicted) % 2:
                predicted[-1] = predicted[-2]
            return {"out_sample": predicted}

        return call
