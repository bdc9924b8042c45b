"""Prompts of models that were trained with captions in lower case."""

import warnings
from typing import Any

from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.tasks.denoise import check_output_type
from perfuse.tasks.masked_prompts import MASKS
from perfuse.tasks.prompts.sequences import check_length
from perfuse.tasks.text import Prompt, guider_for
from perfuse.tasks.text_to_image import checked_texts

__all__ = ["CAPTION_INPUTS", "read_captions"]

_MOST = 512
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
