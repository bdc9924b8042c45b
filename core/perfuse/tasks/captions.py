"""Prompts of models that were trained with captions in lower case, most of them cleaned."""

import warnings
from typing import Any

from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.tasks.denoise import check_output_type
from perfuse.tasks.masked_prompts import MASKS
from perfuse.tasks.prompts.cleaning import clean, without_cleaners
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
        help="Whether to take addresses, markup, names of users and files … out of prompts.",
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
    """Check the inputs; texts are cleaned or put in lower case, as the models were trained."""
    check_output_type(output_type)
    check_length(max_sequence_length, _MOST)
    texts = checked_texts(
        tools, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
    )
    read = clean if clean_caption and _can_clean() else _in_lower_case
    for name in ("prompts", "negatives"):
        texts[name] = [read(text) for text in texts[name]]
    return {**texts, "guider": guider_for(tools, guider, guidance_scale, guidance_rescale)}


def _can_clean() -> bool:
    """Whether captions can be cleaned; as Diffusers does, warn where they cannot."""
    missing = without_cleaners()
    if missing:
        warnings.warn(
            "clean_caption=True needs libraries that are missing: prompts are put in lower case, and "
            f"nothing is taken out of them. Run: pip install {missing}, or give clean_caption=False.",
            stacklevel=2,
        )
    return not missing


def _in_lower_case(text: str) -> str:
    return text.lower().strip()
