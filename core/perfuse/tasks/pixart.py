"""Pictures with PixArt-α (Chen et al. 2023, arXiv:2310.00426) and PixArt-Σ (2024, arXiv:2403.04692).

The text is T5's. Pictures are drawn in the nearest of the sizes that the models were trained with,
and made as large as was asked for afterwards.
"""

from collections.abc import Mapping

from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.tasks.captions import CAPTION_INPUTS, masked_conditions, read_captions
from perfuse.tasks.family import family_task
from perfuse.tasks.prompts.sequences import encode_sequence
from perfuse.tasks.trained_sizes import BINNING, resize, trained_size

__all__ = ["PIXART_ALPHA", "PIXART_SIGMA"]


@step(outputs=("height", "width", "asked_size"), name="check_size")
def nearest_size(
    tools: Tools, height: int | None, width: int | None, use_resolution_binning: bool
) -> State:
    """The size of the training whose shape is nearest to what is asked for, and that itself."""
    return trained_size(tools, height, width, binning=use_resolution_binning, downscale=8)


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
    """T5's states and their mask, each [pictures, …], by condition of the guider."""

    def read(texts: list[str]) -> Mapping[str, Array]:
        states, mask = encode_sequence(
            tools,
            "text_encoder",
            "tokenizer",
            texts,
            length=max_sequence_length,
            hides_padding=True,
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

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


PIXART_ALPHA = family_task(
    {
        **CAPTION_INPUTS,
        "use_resolution_binning": BINNING,
        "max_sequence_length": Input(
            default=120, kind=int, option="--max-tokens", help="Tokens of a prompt that T5 reads."
        ),
    },
    {"num_inference_steps": 20, "guidance_scale": 4.5},
    read_captions,
    nearest_size,
    encode_prompt,
).insert(resize, after="decode")

PIXART_SIGMA = PIXART_ALPHA.with_defaults({"max_sequence_length": 300})
