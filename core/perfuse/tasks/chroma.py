"""Pictures with Chroma (Rock 2025, https://huggingface.co/lodestones/Chroma).

FLUX.1 schnell without CLIP, and with guidance by a negative prompt again. Of what fills a prompt up, the
denoiser sees the first token alone.
"""

from collections.abc import Mapping

import numpy as np

from perfuse.arrays import is_torch
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, Tools
from perfuse.tasks.encoding import STATES, position_ids
from perfuse.tasks.family import family_task
from perfuse.tasks.flow import prepare_flow_schedule, resized_from_picture
from perfuse.tasks.image_prompt_flow import FLUX_IMAGE_PROMPT, encode_flux_images
from perfuse.tasks.masked_prompts import MASKS, encode_masked, length_up_to
from perfuse.tasks.prompts.sequences import encode_sequence

__all__ = ["CHROMA_IMAGE_TO_IMAGE", "CHROMA_TEXT_TO_IMAGE"]

_MOST = 512


def _read(tools: Tools, texts: list[str], length: int) -> Mapping[str, Array]:
    states, mask = encode_sequence(
        tools, "text_encoder", "tokenizer", texts, length=length, hides_padding=True
    )
    seen = np.arange(mask.shape[1]) <= mask.sum(axis=1, keepdims=True)
    return {"encoder_hidden_states": states, "encoder_attention_mask": seen.astype(np.int64)}


_ENCODED = (
    "prompt negative_prompt device num_images_per_prompt prompt_embeds negative_prompt_embeds "
    "prompt_attention_mask negative_prompt_attention_mask do_classifier_free_guidance "
    "max_sequence_length lora_scale"
)


def _encoded(conditions: Mapping[str, Mapping[str, Array]]) -> tuple[Array | None, ...]:
    """What is told of the prompts, then of the negative prompts."""
    return (*_told(conditions.get("positive")), *_told(conditions.get("negative")))


def _told(arrays: Mapping[str, Array] | None) -> tuple[Array | None, ...]:
    """Text states, the ids of the tokens' places [S, 3], and the mask."""
    if arrays is None:
        return None, None, None
    states, mask = arrays[STATES], arrays["encoder_attention_mask"]
    return states, position_ids(states), mask.to(states) if is_torch(mask) else mask * np.float32(1)


_TEXT_TO_IMAGE = family_task(
    {
        **MASKS,
        "max_sequence_length": Input(
            default=_MOST, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
        ),
        **FLUX_IMAGE_PROMPT,
    },
    {"num_inference_steps": 35, "guidance_scale": 5.0},
    prepare_flow_schedule,
    encode_masked(_read),
    encoding=Encoding(order=tuple(_ENCODED.split()), results=_encoded),
)
CHROMA_TEXT_TO_IMAGE = _TEXT_TO_IMAGE.insert(length_up_to(_MOST), before="read_prompts").insert(
    encode_flux_images, after="encode_prompt"
)

CHROMA_IMAGE_TO_IMAGE = resized_from_picture(CHROMA_TEXT_TO_IMAGE, {"strength": 0.9})
