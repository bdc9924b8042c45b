"""Prompts whose denoiser is told which of their tokens count: how they are checked and read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Step, Tools
from perfuse.errors import InputError
from perfuse.tasks.prompts.sequences import check_length
from perfuse.tasks.text import read_conditions

__all__ = ["MASKS", "Texts", "encode_masked", "length_up_to", "masked_conditions"]

#: Prompts; and their states [B, S, D] with a mask of these [B, S], where they are given in their place.
Texts = tuple[list[str], Array | None, Array | None]

MASKS = {
    "prompt_attention_mask": Input(help="1 for tokens, 0 for padding [B, S], with prompt_embeds."),
    "negative_prompt_attention_mask": Input(help="The same for negative_prompt_embeds."),
}


@dataclass(frozen=True)
class _LengthUpTo:
    """Refuse to read more tokens of a prompt than the model takes."""

    most: int

    def __call__(self, tools: Tools, max_sequence_length: int) -> State:
        check_length(max_sequence_length, self.most)
        return {}


def length_up_to(most: int) -> Step:
    """The step that refuses a ``max_sequence_length`` of more than ``most`` tokens."""
    return Step(name="check_prompt_length", run=_LengthUpTo(most), outputs=())


#: What reads texts of at most so many tokens.
_Reading = Callable[[Tools, list[str], int], Mapping[str, Array]]


@dataclass(frozen=True)
class _EncodeMasked:
    """The text's states and their mask, each [pictures, …], by condition of the guider."""

    read: _Reading

    def __call__(
        self,
        tools: Tools,
        prompts: list[str],
        negatives: list[str],
        count: int,
        prompt_embeds: Array | None,
        negative_prompt_embeds: Array | None,
        prompt_attention_mask: Array | None,
        negative_prompt_attention_mask: Array | None,
        num_images_per_prompt: int,
        max_sequence_length: int,
        guider: Guider,
    ) -> State:
        conditions = masked_conditions(
            guider,
            num_images_per_prompt,
            lambda texts: self.read(tools, texts, max_sequence_length),
            positive=(prompts, prompt_embeds, prompt_attention_mask),
            negative=(
                negatives or [""] * count,
                negative_prompt_embeds,
                negative_prompt_attention_mask,
            ),
        )
        return {"conditions": conditions}


def encode_masked(read: _Reading) -> Step:
    """The step that encodes prompts, given what reads texts of at most so many tokens."""
    return Step(name="encode_prompt", run=_EncodeMasked(read), outputs=("conditions",))


def _as_they_are(states: Array, mask: Any) -> Mapping[str, Array]:
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def masked_conditions(
    guider: Guider,
    times: int,
    read: Callable[[list[str]], Mapping[str, Array]],
    *,
    positive: Texts,
    negative: Texts,
    read_negative: Callable[[list[str]], Mapping[str, Array]] | None = None,
    of_states: Callable[[Array, Any], Mapping[str, Array]] = _as_they_are,
    needs_mask: bool = True,
    end: str = "",
) -> dict[str, dict[str, Array]]:
    """What the denoiser is told of prompts, each [pictures, …], by condition of the guider.

    Args:
        guider: Whose branches name the conditions.
        times: Pictures per prompt.
        read: Reads texts.
        positive: The prompts.
        negative: The negative prompts.
        read_negative: Reads negative prompts, if they are read otherwise.
        of_states: The same of states [B, S, D] that are given, and their mask, int64 [B, S].
        needs_mask: Whether states are given with their mask; else all tokens count where there is none.
        end: What the names of the states end in: ``"_2"`` of a second text encoder.

    Raises:
        InputError: a mask is missing, is given alone, or has another shape than its states.
    """
    other = read if read_negative is None else read_negative

    def conditions(
        name: str, how: Callable[[list[str]], Mapping[str, Array]], one: Texts
    ) -> Mapping[str, Array]:
        texts, given, mask = one
        if given is None and mask is None:
            return how(texts)
        if given is None or (mask is None and needs_mask):
            raise InputError(
                f"Only one of {name}_embeds{end} and its mask was given. Give both or neither."
            )
        shape = tuple(given.shape[:2])
        seen = np.ones(shape) if mask is None else to_numpy(mask)
        if seen.shape != shape:
            raise InputError(
                f"A mask of shape {seen.shape} was given for {name}_embeds{end} of shape "
                f"{tuple(given.shape)}. Give one number for each token."
            )
        return of_states(given, seen.astype(np.int64))

    return read_conditions(
        guider,
        times,
        positive=lambda: conditions("prompt", read, positive),
        negative=lambda: conditions("negative_prompt", other, negative),
        empty=lambda: other([""] * len(negative[0])),
    )
