"""A text encoder as prompts use it: token ids in, the states that the denoiser takes out."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse.contract.backend import Program
from perfuse.contract.spec import Array
from perfuse.contract.steps import Tools
from perfuse.errors import InputError
from perfuse.sources.tokenizer import Tokenizer

__all__ = ["Encoded", "TextEncoder"]

#: Added to the logits of what may not be attended to; float16 holds it, and its exponential is 0.
_HIDDEN = -10000.0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What a text encoder says of B rows of L tokens."""

    #: [B, L, D].
    states: Array
    #: The pooled states [B, P]; ``None`` if they were not asked for.
    pooled: Array | None


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A text encoder of the pipeline with its tokenizer, and which of its layers is asked for."""

    tools: Tools
    name: str
    tokenizer_name: str
    #: The layer before the last, not normalised, as SD XL has it; else the last.
    penultimate: bool = False
    #: Whether the pooled states are asked for, too.
    pools: bool = False
    #: Layers to leave out at the end, beside those that are left out anyway.
    clip_skip: int | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.tools.tokenizer(self.tokenizer_name)

    @property
    def length(self) -> int:
        """The tokens of a row, those that begin and end it included."""
        return self.tokenizer.model_max_length

    def skipping(self, clip_skip: int | None) -> "TextEncoder":
        """The encoder, asked for an earlier layer.

        Raises:
            InputError: it has no such layer.
        """
        if clip_skip is None:
            return self
        layers = int(self.tools.spec.components[self.name].config.get("num_hidden_layers", 12))
        most = layers - 1 if self.penultimate else layers
        whole = isinstance(clip_skip, int) and not isinstance(clip_skip, bool)
        if not whole or not 0 <= clip_skip <= most:
            raise InputError(
                f"clip_skip={clip_skip!r} was asked for; {self.name} has {layers} layers. Give a "
                f"whole number from 0 to {most}."
            )
        return dataclasses.replace(self, clip_skip=clip_skip)

    def words(self, tokens: list[int]) -> list[str]:
        """The vocabulary's entry for each token: ``",</w>"`` for CLIP's comma."""
        return [self.tokenizer.token_of(token) for token in tokens]

    def row(self, tokens: list[int]) -> list[int]:
        """Tokens between those that begin and end a prompt, filled up to ``length``."""
        tokenizer = self.tokenizer
        ends = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        begin, end, pad = (0 if one is None else one for one in ends)
        row = [begin, *tokens, end]
        return row + [pad] * (self.length - len(row))

    def __call__(self, ids: NDArray[np.int64], seen: NDArray[np.int64] | None = None) -> Encoded:
        """Encode rows of tokens.

        Args:
            ids: int64 [B, L].
            seen: int64 [B, L], 0 where a token must not be attended to.

        Raises:
            InputError: the model is an export that was made without what this needs.
        """
        outputs = self.outputs(ids, seen)
        return Encoded(
            states=self._states(outputs), pooled=outputs["text_embeds"] if self.pools else None
        )

    def outputs(
        self, ids: NDArray[np.int64], seen: NDArray[np.int64] | None = None
    ) -> dict[str, Array]:
        """All outputs of the encoder for rows of tokens, as ``__call__`` takes them."""
        learned: Mapping[int, Array] = getattr(self.tokenizer, "learned", {})
        special = seen is not None or self.clip_skip is not None
        program = self._program(special or bool(np.isin(ids, [*learned]).any()))
        given: dict[str, Array] = {"input_ids": ids}
        if program.signature.input("added_embeddings") is not None:
            given = self._steering(ids, seen, learned)
        return program(**given)

    def _program(self, special: bool) -> Program:
        """The program; rewritten first if it has to do more than a plain encoder does."""
        known = self.tools.spec.components.get(self.name)
        steered = known is None or known.signature.input("added_embeddings") is not None
        if special and not steered:
            self.tools.add_transform("prompts")
        return self.tools.program(self.name)

    def _steering(
        self, ids: NDArray[np.int64], seen: NDArray[np.int64] | None, learned: Mapping[int, Array]
    ) -> dict[str, Array]:
        """The inputs of a steered encoder."""
        spec = self.tools.spec.components[self.name]
        taken = spec.signature.input("added_embeddings")
        assert taken is not None
        added = np.zeros((*ids.shape, int(taken.shape[-1])), dtype=np.float32)
        moved = ids.copy()
        if learned:
            # Beyond the table, which may have more rows than the tokenizer has tokens.
            beyond = int(spec.config.get("vocab_size", 49408)) - min(learned)
            for token, vector in learned.items():
                added[ids == token] = vector
                moved[ids == token] = token + max(beyond, 0)
        length = ids.shape[1]
        allowed = np.tril(np.ones((length, length), dtype=bool))[None]
        if seen is not None:
            allowed = allowed & (seen != 0)[:, None, :]
        bias = np.zeros((len(ids), length, length), dtype=np.float32)
        bias += np.where(allowed, np.float32(0), np.float32(_HIDDEN))
        return {"input_ids": moved, "added_embeddings": added, "attention_bias": bias}

    def _states(self, outputs: dict[str, Array]) -> Array:
        if self.clip_skip is None:
            return outputs["penultimate_hidden_state" if self.penultimate else "last_hidden_state"]
        if self.penultimate:
            return outputs["hidden_states"][:, -(self.clip_skip + 2)]
        return outputs["normed_hidden_states"][:, -(self.clip_skip + 1)]
