"""Pictures with AuraFlow (https://blog.fal.ai/auraflow). The text is that of a T5 or a UMT5."""

from collections.abc import Mapping

from perfuse.arrays import is_torch, place
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.tasks.captions import MASKS, masked_conditions
from perfuse.tasks.chroma import read_prompts
from perfuse.tasks.family import family_task
from perfuse.tasks.prompts.sequences import encode_sequence

__all__ = ["AURA_FLOW"]


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
    """The text's states; those of what fills a prompt up are zero, and the denoiser sees them."""

    def read(texts: list[str]) -> Mapping[str, Array]:
        states, mask = encode_sequence(
            tools,
            "text_encoder",
            "tokenizer",
            texts,
            length=max_sequence_length,
            hides_padding=True,
        )
        seen = place(mask, states.device if is_torch(states) else None)
        return {"encoder_hidden_states": states * seen[:, :, None], "encoder_attention_mask": mask}

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


AURA_FLOW = family_task(
    {
        **MASKS,
        "max_sequence_length": Input(
            default=256, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
        ),
    },
    {"guidance_scale": 3.5},
    read_prompts,
    encode_prompt,
)
