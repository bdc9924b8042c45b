"""Reading prompts with a text encoder, in a syntax or as plain text."""

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.spec import Array
from perfuse.contract.steps import Tools
from perfuse.errors import InputError
from perfuse.tasks.prompts import FILES
from perfuse.tasks.prompts.encoder import Encoded, TextEncoder
from perfuse.tasks.prompts.syntax import Syntax, empty, lengthened

__all__ = ["PromptReader", "equally_long", "find_syntax", "tokenised"]

_ROOM = "perfuse.tasks.prompts"


def find_syntax(name: str | None) -> Syntax | None:
    """The syntax of a name; ``None`` for none.

    Raises:
        InputError: there is no such syntax.
    """
    if name is None:
        return None
    known = {file: classes[0] for file, classes in FILES.items() if classes}
    if name not in known:
        raise InputError(f"prompt_syntax={name!r} was asked for; there are {', '.join(known)}.")
    made: Syntax = getattr(importlib.import_module(f"{_ROOM}.{name}"), known[name])()
    return made


@dataclass(frozen=True, kw_only=True)
class PromptReader:
    """A text encoder, and the syntax that its prompts are written in."""

    encoder: TextEncoder
    syntax: Syntax | None = None

    @classmethod
    def of(
        cls, tools: Tools, encoder: str, tokenizer: str, *, syntax: str | None, **layer: Any
    ) -> "PromptReader":
        """A reader; ``layer`` says which of the encoder's layers: fields of ``TextEncoder``.

        Raises:
            InputError: there is no such syntax.
        """
        made = TextEncoder(tools=tools, name=encoder, tokenizer_name=tokenizer, **layer)
        return cls(encoder=made, syntax=find_syntax(syntax))

    def __call__(self, texts: list[str], clip_skip: int | None = None) -> Encoded:
        """The states [B, S, D] and the pooled states [B, P] of B prompts.

        Raises:
            InputError: a prompt or ``clip_skip`` cannot be used.
        """
        encoder = self.encoder.skipping(clip_skip)
        if self.syntax is None:
            return encoder(tokenised(encoder, texts))
        if not hasattr(encoder.tokenizer, "token_of"):
            raise InputError(
                f"prompt_syntax was given; {encoder.tokenizer_name} was replaced by a tokenizer of "
                "another library, which perfuse cannot take apart. Use the checkpoint's."
            )
        read = [self.syntax.read(encoder, text) for text in texts]
        states = {str(i): one.states for i, one in enumerate(read)}
        whole = equally_long(states, lambda: empty(encoder))
        pooled: list[Any] = [one.pooled for one in read]
        return Encoded(
            states=np.concatenate(list(whole.values())),
            pooled=np.concatenate(pooled) if encoder.pools else None,
        )

    def skipping(self, clip_skip: int | None) -> "PromptReader":
        """The reader, with an earlier layer of its encoder."""
        return dataclasses.replace(self, encoder=self.encoder.skipping(clip_skip))

    def empty(self) -> Array:
        """The states of an empty prompt, [1, L, D]."""
        return empty(self.encoder)


_ALL_OF_IT = "prompt_syntax='plain' reads all of it."


def tokenised(encoder: TextEncoder, texts: list[str], remedy: str = _ALL_OF_IT) -> Any:
    """Rows of tokens [B, L]; warns, as Diffusers does, where a prompt was cut off."""
    tokens = encoder.tokenizer(texts)
    for cut in tokens.truncated:
        if cut is not None:
            limit = tokens.input_ids.shape[1]
            warnings.warn(
                f"The prompt is longer than the {limit} tokens that {encoder.name} reads; this was "
                f"cut off: {cut!r}. {remedy}",
                stacklevel=2,
            )
    return tokens.input_ids


def equally_long(states: Mapping[str, Array], filler: Callable[[], Array]) -> dict[str, Array]:
    """States [B, S, D] of several prompts, each filled up to the longest with an empty prompt's.

    The filler [1, L, D] is asked for only where lengths differ.
    """
    longest = max(array.shape[1] for array in states.values())
    if all(array.shape[1] == longest for array in states.values()):
        return dict(states)
    between = filler()
    return {name: lengthened(to_numpy(array), longest, between) for name, array in states.items()}
