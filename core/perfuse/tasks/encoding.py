"""What ``encode_prompt`` of Diffusers' pipelines takes and returns, in the words of conditions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfuse.arrays import is_torch, place
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding

__all__ = ["STATES", "Taken", "encoding", "masked_encoding", "position_ids", "seen"]

Conditions = Mapping[str, Mapping[str, Array]]

#: The text states that a denoiser reads.
STATES = "encoder_hidden_states"


@dataclass(frozen=True)
class Taken:
    """Results of ``encode_prompt`` that are arrays of conditions."""

    #: A condition and an array of it, for each result.
    arrays: tuple[tuple[str, str], ...]

    def __call__(self, conditions: Conditions) -> tuple[Array | None, ...]:
        """The arrays; ``None`` for one of a condition that is not there."""
        return tuple(
            conditions[name][array] if name in conditions else None for name, array in self.arrays
        )


def encoding(order: str, *taken: tuple[str, str], joins: bool = True) -> Encoding:
    """Of arguments in this order, with spaces between; results are arrays of conditions."""
    return Encoding(order=tuple(order.split()), results=Taken(taken), joins=joins)


def masked_encoding(order: str, **defaults: Any) -> Encoding:
    """Of arguments in this order; results are states and their mask, those of the negative prompt last.

    Args:
        order: The arguments, with spaces between.
        **defaults: Of some of them, where the task's inputs have others.
    """
    mask = "encoder_attention_mask"
    conditions = ("positive", "negative")
    taken = [(name, array) for name in conditions for array in (STATES, mask)]
    return replace(encoding(order, *taken), defaults=defaults)


def position_ids(states: Array) -> Array:
    """The ids [S, 3] of tokens of text in FLUX.1 and Chroma: all zero, on the device of their states."""
    zeros = np.zeros((states.shape[1], 3), dtype=np.float32)
    return place(zeros, states.device if is_torch(states) else None)


def seen(bias: Any) -> Array:
    """The mask [B, S] of tokens to which attention adds this bias: 1 where that is zero."""
    counts = (bias == 0) * 1
    return counts.long() if is_torch(counts) else counts.astype(np.int64)
