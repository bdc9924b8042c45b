"""Pictures with Chroma (Rock 2025, https://huggingface.co/lodestones/Chroma).

FLUX.1 schnell without CLIP, and with guidance by a negative prompt again. Of what fills a prompt up, the
denoiser sees the first token alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.tasks.captions import MASKS, masked_conditions
from perfuse.tasks.denoise import check_output_type
from perfuse.tasks.family import family_task
from perfuse.tasks.flow import prepare_flow_schedule, resized_from_picture
from perfuse.tasks.prompts.sequences import check_length, encode_sequence
from perfuse.tasks.text import Prompt, guider_for
from perfuse.tasks.text_to_image import checked_texts

__all__ = ["CHROMA_IMAGE_TO_IMAGE", "CHROMA_TEXT_TO_IMAGE"]

_MOST = 512


@step(outputs=("prompts", "negatives", "count", "guider"))
def read_prompts(
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
    output_type: str,
) -> State:
    """Check the inputs, and choose the guidance."""
    check_output_type(output_type)
    check_length(max_sequence_length, _MOST)
    texts = checked_texts(
        tools, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
    )
    return {**texts, "guider": guider_for(tools, guider, guidance_scale, guidance_rescale)}


@step(outputs=("conditions",))
def encode_prompt(
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
    """T5's states and what the denoiser sees of them, each [pictures, …], by condition."""

    def read(texts: list[str]) -> Mapping[str, Array]:
        states, mask = encode_sequence(
            tools,
            "text_encoder",
            "tokenizer",
            texts,
            length=max_sequence_length,
            hides_padding=True,
        )
        seen = np.arange(mask.shape[1]) <= mask.sum(axis=1, keepdims=True)
        return {"encoder_hidden_states": states, "encoder_attention_mask": seen.astype(np.int64)}

    conditions = masked_conditions(
        guider,
        num_images_per_prompt,
        read,
        positive=(prompts, prompt_embeds, prompt_attention_mask),
        negative=(
            negatives or [""] * count,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        ),
    )
    return {"conditions": conditions}


CHROMA_TEXT_TO_IMAGE = family_task(
    {
        **MASKS,
        "max_sequence_length": Input(
            default=_MOST, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
        ),
    },
    {"num_inference_steps": 35, "guidance_scale": 5.0},
    read_prompts,
    prepare_flow_schedule,
    encode_prompt,
)

CHROMA_IMAGE_TO_IMAGE = resized_from_picture(CHROMA_TEXT_TO_IMAGE, {"strength": 0.9})
