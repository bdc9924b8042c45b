"""Pictures with AuraFlow (https://blog.fal.ai/auraflow). The text is that of a T5 or a UMT5."""

from collections.abc import Mapping

from perfuse.arrays import is_torch, place
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, Tools
from perfuse.tasks.encoding import masked_encoding
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


AURA_FLOW = family_task(
    {
        **MASKS,
        "max_sequence_length": Input(
            default=256, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
        ),
    },
    {"guidance_scale": 3.5},
    encode_masked(_read),
    encoding=masked_encoding(
        "prompt negative_prompt do_classifier_free_guidance num_images_per_prompt device "
        "prompt_embeds negative_prompt_embeds prompt_attention_mask negative_prompt_attention_mask "
        "max_sequence_length lora_scale"
    ),
).insert(length_up_to(_MOST), before="read_prompts")
