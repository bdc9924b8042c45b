"""Pictures with AuraFlow (https://blog.fal.ai/auraflow). The text is that of a T5 or a UMT5."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays import is_torch, place, to_numpy
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, State, Tools, step
from perfuse.tasks.encoding import STATES
from perfuse.tasks.family import family_task
from perfuse.tasks.masked_prompts import MASKS, encode_masked, length_up_to
from perfuse.tasks.prompts.sequences import encode_sequence

__all__ = ["AURA_FLOW"]

_MOST = 512


def _read(tools: Tools, texts: list[str], length: int) -> Mapping[str, Array]:
    """The text's states; those of what fills a prompt up are zero, and the denoiser sees them."""
    states, mask = encode_sequence(
        tools, "text_encoder", "tokenizer", texts, length=length, hides_padding=True
    )
    seen = place(mask, states.device if is_torch(states) else None)
    return {"encoder_hidden_states": states * seen[:, :, None], "encoder_attention_mask": mask}


@step(outputs=("prompt_attention_mask", "negative_prompt_attention_mask"))
def read_masks(
    tools: Tools,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    prompt_attention_mask: Any,
    negative_prompt_attention_mask: Any,
) -> State:
    """Masks [B, S], also of those that ``encode_prompt`` gives, which say it for each number of a state."""

    def of_tokens(states: Array | None, mask: Any) -> Any:
        if states is None or mask is None:
            return mask
        batch, tokens, width = states.shape
        array = to_numpy(mask)
        wide = array.shape == (batch, tokens * width)
        return array.reshape(batch, tokens, width)[:, :, 0] if wide else array

    return {
        "prompt_attention_mask": of_tokens(prompt_embeds, prompt_attention_mask),
        "negative_prompt_attention_mask": of_tokens(
            negative_prompt_embeds, negative_prompt_attention_mask
        ),
    }


_ENCODED = (
    "prompt negative_prompt do_classifier_free_guidance num_images_per_prompt device prompt_embeds "
    "negative_prompt_embeds prompt_attention_mask negative_prompt_attention_mask "
    "max_sequence_length lora_scale"
)


def _encoded(conditions: Mapping[str, Mapping[str, Array]]) -> tuple[Array | None, ...]:
    """What is told of the prompts, then of the negative prompts."""
    return (*_told(conditions.get("positive")), *_told(conditions.get("negative")))


def _told(arrays: Mapping[str, Array] | None) -> tuple[Array | None, ...]:
    """Text states [B, S, D], and the mask, of each number of them: [B, S · D]."""
    if arrays is None:
        return None, None
    states, mask = arrays[STATES], to_numpy(arrays["encoder_attention_mask"])
    return states, np.repeat(mask, int(states.shape[2]), axis=1)


_TEXT_TO_IMAGE = family_task(
    {
        **MASKS,
        "max_sequence_length": Input(
            default=256, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
        ),
    },
    {"guidance_scale": 3.5},
    encode_masked(_read),
    encoding=Encoding(order=tuple(_ENCODED.split()), results=_encoded),
)
AURA_FLOW = _TEXT_TO_IMAGE.insert(length_up_to(_MOST), before="read_prompts").insert(
    read_masks, before="encode_prompt"
)
