"""Text encoders that read as many tokens as they are given, as T5 does: states and their mask."""

import warnings
from typing import Any

import numpy as np

from perfuse.contract.spec import Array
from perfuse.contract.steps import Tools
from perfuse.errors import InputError
from perfuse.models.registry import host_inputs

__all__ = ["check_length", "encode_sequence"]


def check_length(length: object, most: int) -> None:
    """Raise ``InputError`` unless ``max_sequence_length`` is a whole number from 2 to ``most``."""
    whole = isinstance(length, int) and not isinstance(length, bool)
    if not whole or not 2 <= int(str(length)) <= most:
        raise InputError(
            f"max_sequence_length={length!r} was asked for; this family reads at most {most} tokens "
            f"of a prompt. Give a whole number from 2 to {most}."
        )


def encode_sequence(
    tools: Tools,
    encoder: str,
    tokenizer: str,
    texts: list[str],
    *,
    length: int,
    hides_padding: bool,
    chosen: bool = True,
) -> tuple[Array, Any]:
    """The states [B, L, D] of B prompts, filled up to ``length`` tokens, and the mask [B, L].

    Args:
        tools: The pipeline.
        encoder: The component's name.
        tokenizer: Its tokenizer's.
        texts: The prompts. One that is longer is cut off, with a warning.
        length: L.
        hides_padding: Whether what fills a prompt up is hidden from its tokens.
        chosen: Whether ``max_sequence_length`` says how many tokens are read.
    """
    tokens = tools.tokenizer(tokenizer)(texts, max_length=length)
    for cut in tokens.truncated:
        if cut is not None:
            warnings.warn(
                f"The prompt is longer than the {length} tokens that {encoder} reads"
                f"{' (max_sequence_length)' if chosen else ''}; this was cut off: {cut!r}.",
                stacklevel=2,
            )
    ids, mask = np.asarray(tokens.input_ids), np.asarray(tokens.attention_mask)
    seen = mask if hides_padding else np.ones_like(mask)
    spec = tools.spec.components[encoder]
    more = host_inputs(spec, {"batch": len(ids), "sequence": length})
    program = tools.program(encoder)
    given = {"input_ids": ids, "attention_mask": seen, **more}
    return program(**given)["last_hidden_state"], mask
