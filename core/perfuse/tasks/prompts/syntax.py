"""What a prompt syntax is, and what syntaxes share."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays import to_numpy
from perfuse.tasks.prompts.encoder import Encoded, TextEncoder

__all__ = ["Syntax", "empty", "lengthened", "rows_of"]


class Syntax(ABC):
    """A way to read a prompt of any length."""

    @abstractmethod
    def read(self, encoder: TextEncoder, text: str) -> Encoded:
        """The states [1, S, D] and the pooled states [1, P] of one prompt, as numpy arrays.

        S is a multiple of the tokens that the encoder reads at once.

        Raises:
            InputError: the prompt uses something that cannot be done here.
        """


def rows_of(encoder: TextEncoder, chunks: list[list[int]]) -> NDArray[np.int64]:
    """Chunks of tokens as rows for the encoder, int64 [chunks, L]."""
    return np.asarray([encoder.row(chunk) for chunk in chunks], dtype=np.int64)


def empty(encoder: TextEncoder) -> NDArray[np.float32]:
    """The states of an empty prompt, [1, L, D]."""
    states: NDArray[np.float32] = to_numpy(encoder(rows_of(encoder, [[]])).states)
    return states


def lengthened(
    states: NDArray[np.float32], length: int, filler: NDArray[np.float32]
) -> NDArray[np.float32]:
    """States [B, S, D] with an empty prompt's [1, L, D] behind them, up to ``length``."""
    times = max(length - states.shape[1], 0) // filler.shape[1]
    if not times:
        return states
    return np.concatenate([states, np.tile(filler, (len(states), times, 1))], axis=1)
