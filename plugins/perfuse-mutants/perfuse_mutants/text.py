"""Text encoders that read another text, or read it from another place."""

from typing import Any, ClassVar

import numpy as np

from perfuse.backend import Component
from perfuse_mutants.backend import Arrays, Mutant, Run

__all__ = ["CutText", "FirstPrompt", "Pooled", "end_of"]


def end_of(ids: Any) -> Any:
    """Where each text ends, [B]: at its first end token, which has the highest id."""
    return (ids == ids.max()).argmax(axis=1)


class CutText(Mutant):
    """Cuts a text that fills every place one token early."""

    name = "mutant-cut-text"
    roles = ("text",)

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            ids = inputs["input_ids"].copy()
            full = end_of(ids) == ids.shape[1] - 1
            ids[full, -2] = ids[full, -1]
            return run({**inputs, "input_ids": ids})

        return call


class Pooled(Mutant):
    """Takes the pooled text from the last place, not from where the text ends."""

    name = "mutant-pooled"
    roles = ("text",)

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            outputs = run(inputs)
            if "pooler_output" in outputs:
                last = np.ascontiguousarray(outputs["last_hidden_state"][:, -1])
                outputs["pooler_output"] = last
            return outputs

        return call


class FirstPrompt(Mutant):
    """The second text encoder of XL reads the first's words, padded as its own tokenizer pads."""

    name = "mutant-first-prompt"
    roles = ("text",)
    #: What the first encoder of this process read last: text, ended, without what comes after.
    _heard: ClassVar[list[Any]] = []

    def spoil(self, component: Component, run: Run) -> Run:
        def hear(inputs: Arrays) -> Arrays:
            ids = inputs["input_ids"]
            ends = end_of(ids)
            self._heard[:] = [row[: end + 1].copy() for row, end in zip(ids, ends, strict=True)]
            return run(inputs)

        def repeat(inputs: Arrays) -> Arrays:
            ids = inputs["input_ids"].copy()
            if len(self._heard) == len(ids):
                for row, text in zip(ids, self._heard, strict=True):
                    row[len(text) :] = row[-1]
                    row[: len(text)] = text
            return run({**inputs, "input_ids": ids})

        return repeat if component.name.endswith("_2") else hear
