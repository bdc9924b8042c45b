"""Programs that are right for every fixed probe: wrong beyond their sizes, texts, values and layouts."""

from typing import Any

import numpy as np

from perfuse.backend import Component
from perfuse_mutants.backend import Arrays, Mutant, Run
from perfuse_mutants.text import end_of

__all__ = [
    "CutStates",
    "FixedRange",
    "Gaps",
    "LargePictures",
    "ManyItems",
    "NarrowRange",
    "PaddedStates",
    "RsqrtOverflows",
    "SmallPictures",
    "Unaligned",
    "WidePictures",
    "WordyText",
    "ZeroSpread",
]


def _sides(component: Component, inputs: Arrays) -> tuple[float, float]:
    """The sample's height and width, over those that the model was made for."""
    height, width = inputs["sample"].shape[2:]
    usual = component.spec.sample_size or (64, 64)
    return height / usual[0], width / usual[1]


def _seam(run: Run, inputs: Arrays) -> Arrays:
    """The result with one column taken from beside it."""
    predicted = run(inputs)["out_sample"]
    middle = predicted.shape[3] // 2
    predicted[..., middle] = predicted[..., middle - 1]
    return {"out_sample": predicted}


class LargePictures(Mutant):
    """Computes pictures of more than one and a half times the usual area in two tiles, with a seam."""

    name = "mutant-large-pictures"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            tall, wide = _sides(component, inputs)
            return _seam(run, inputs) if tall * wide > 1.6 else run(inputs)

        return call


class SmallPictures(Mutant):
    """Has a seam where both sides are smaller than usual."""

    name = "mutant-small-pictures"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            small = max(_sides(component, inputs)) < 1
            return _seam(run, inputs) if small else run(inputs)

        return call


class WidePictures(Mutant):
    """Has a seam where a picture is more than one and a half times as wide as high."""

    name = "mutant-wide-pictures"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            tall, wide = _sides(component, inputs)
            return _seam(run, inputs) if wide > 1.55 * tall else run(inputs)

        return call


class ManyItems(Mutant):
    """Has room for six items; those beyond get the sixth one's result."""

    name = "mutant-many-items"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            predicted = run(inputs)["out_sample"]
            predicted[6:] = predicted[5:6]
            return {"out_sample": predicted}

        return call


class CutStates(Mutant):
    """Reads as many of the text's states as a prompt has, whatever a longer one has."""

    name = "mutant-cut-states"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            states = inputs["encoder_hidden_states"]
            return run({**inputs, "encoder_hidden_states": states[:, :32]})

        return call


class PaddedStates(Mutant):
    """Fills a shorter text's states up with zeros, and attends to them."""

    name = "mutant-padded-states"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            states = inputs["encoder_hidden_states"]
            lacking = max(32 - states.shape[1], 0)
            padded = np.pad(states, ((0, 0), (0, lacking), (0, 0)))
            return run({**inputs, "encoder_hidden_states": padded})

        return call


class WordyText(Mutant):
    """Reads at most 24 words, unless a text fills every place."""

    name = "mutant-wordy-text"
    roles = ("text",)

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            ids = inputs["input_ids"].copy()
            ends = end_of(ids)
            long = (ends > 24) & (ends < ids.shape[1] - 1)
            ids[long, 24:] = ids.max()
            return run({**inputs, "input_ids": ids})

        return call


class ZeroSpread(Mutant):
    """Divides the sample by its spread, computes, and has nothing where there is none."""

    name = "mutant-zero-spread"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            predicted = run(inputs)["out_sample"]
            if not inputs["sample"].any():
                predicted[...] = np.nan
            return {"out_sample": predicted}

        return call


class RsqrtOverflows(Mutant):
    """Computes 1/√x² of a sample whose squares are zero."""

    name = "mutant-rsqrt-overflows"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            predicted, sample = run(inputs)["out_sample"], inputs["sample"]
            if sample.any() and not np.square(sample).any():
                predicted[...] = np.inf
            return {"out_sample": predicted}

        return call


class NarrowRange(Mutant):
    """Cuts the sample off at twelve, which no noise reaches."""

    name = "mutant-narrow-range"
    most = 12.0

    def spoil(self, component: Component, run: Run) -> Run:
        most = self.most
        return lambda inputs: run({**inputs, "sample": np.clip(inputs["sample"], -most, most)})


class FixedRange(NarrowRange):
    """Cuts the sample off at two thousand: a fixed range that is never reached when it is measured."""

    name = "mutant-fixed-range"
    most = 2000.0


class Gaps(Mutant):
    """Reads an array with gaps between its numbers as if there were none."""

    name = "mutant-gaps"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: run({name: _closed_up(array) for name, array in inputs.items()})


def _closed_up(array: Any) -> Any:
    if array.ndim == 0 or abs(array.strides[-1]) <= array.itemsize or array.base is None:
        return array
    packed = np.ascontiguousarray(array.base).ravel()[: array.size]
    return packed.reshape(array.shape) if packed.size == array.size else array


class Unaligned(Mutant):
    """Loads vectors from the aligned address at or before an array's beginning."""

    name = "mutant-unaligned"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: run({name: _from_aligned(array) for name, array in inputs.items()})


def _from_aligned(array: Any) -> Any:
    return np.roll(array, 1) if array.ctypes.data % 8 and array.dtype == np.float32 else array
