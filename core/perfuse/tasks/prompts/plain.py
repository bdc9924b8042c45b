"""Prompts without marks, of any length: chunks that are encoded one by one."""

from perfuse.arrays import to_numpy
from perfuse.tasks.prompts.encoder import Encoded, TextEncoder
from perfuse.tasks.prompts.syntax import Syntax, rows_of

__all__ = ["Plain"]


class Plain(Syntax):
    """Every chunk is what fits between the tokens that begin and end a prompt: 75 of 77.

    The chunks' states follow each other; the pooled states are the first chunk's.
    """

    def read(self, encoder: TextEncoder, text: str) -> Encoded:
        room, ids = encoder.length - 2, encoder.tokenizer.ids(text, special=False)
        chunks = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
        found = encoder(rows_of(encoder, chunks))
        states = to_numpy(found.states)
        return Encoded(
            states=states.reshape(1, -1, states.shape[-1]),
            pooled=None if found.pooled is None else to_numpy(found.pooled)[:1],
        )
