"""Prompts of models that were trained with captions in lower case, and masks of their tokens."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.denoise import check_output_type
from perfuse.tasks.prompts.sequences import check_length
from perfuse.tasks.text import Prompt, guider_for, read_conditions
from perfuse.tasks.text_to_image import checked_texts

__all__ = ["CAPTION_INPUTS", "MASKS", "masked_conditions", "read_captions"]

_MOST = 512
MASKS = {
    "prompt_attention_mask": Input(help="1 for tokens, 0 for padding [B, S], with prompt_embeds."),
    "negative_prompt_attention_mask": Input(help="The same for negative_prompt_embeds."),
}
#: What a family of such models takes besides what all take, but for the number of tokens.
CAPTION_INPUTS = {
    **MASKS,
    "clean_caption": Input(
        default=False,
        kind=bool,
        help="Accepted for Diffusers' sake; warns that nothing is cleaned.",
    ),
}


@step(outputs=("prompts", "negatives", "count", "guider"), name="read_prompts")
def read_captions(
    tools: Tools,
    prompt: Prompt,
    negative_prompt: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    guidance_scale: float,
    guidance_rescale: float,
    guider: Any,
    num_images_per_prompt: int,
    max_sequence_length: int,
    clean_caption: bool,
    output_type: str,
) -> State:
    """Check the inputs; texts are in lower case, as the models were trained."""
    check_output_type(output_type)
    check_length(max_sequence_length, _MOST)
    texts = checked_texts(
        tools, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
    )
    if clean_caption:
        warnings.warn(
            "clean_caption=True was given; prompts are put in lower case here, and nothing is taken "
            "out of them. Leave out web addresses and markup yourself.",
            stacklevel=2,
        )
    for name in ("prompts", "negatives"):
        texts[name] = [text.lower().strip() for text in texts[name]]
    return {**texts, "guider": guider_for(tools, guider, guidance_scale, guidance_rescale)}


def masked_conditions(
    guider: Guider,
    times: int,
    read: Callable[[list[str]], Mapping[str, Array]],
    *,
    positive: tuple[list[str], Array | None, Array | None],
    negative: tuple[list[str], Array | None, Array | None],
    read_negative: Callable[[list[str]], Mapping[str, Array]] | None = None,
) -> dict[str, dict[str, Array]]:
    """Text states and their mask, each [pictures, …], by condition of the guider.

    Args:
        guider: Whose branches name the conditions.
        times: Pictures per prompt.
        read: Reads texts: ``encoder_hidden_states`` and ``encoder_attention_mask``.
        positive: The prompts; and states with their mask, where they are given instead.
        negative: The same of the negative prompts.
        read_negative: Reads negative prompts, if they are read otherwise.

    Raises:
        InputError: of states and mask only one is given.
    """
    other = read if read_negative is None else read_negative

    def states(
        name: str,
        how: Callable[[list[str]], Mapping[str, Array]],
        texts: list[str],
        given: Array | None,
        mask: Array | None,
    ) -> Mapping[str, Array]:
        if (given is None) != (mask is None):
            raise InputError(
                f"Only one of {name}_embeds and {name}_attention_mask was given. Give both or "
                "neither."
            )
        if given is None:
            return how(texts)
        whole = to_numpy(mask).astype(np.int64)
        return {"encoder_hidden_states": given, "encoder_attention_mask": whole}

    return read_conditions(
        guider,
        times,
        positive=lambda: states("prompt", read, *positive),
        negative=lambda: states("negative_prompt", other, *negative),
        empty=lambda: other([""] * len(negative[0])),
    )
