"""Pictures with FLUX.1 (Black Forest Labs 2024).

The transformer reads T5's states of a prompt and CLIP's pooled ones, and is told the guidance scale
where it was distilled for that. Guidance by a negative prompt is apart from it: ``true_cfg_scale``.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, State, Tools, step
from perfuse.tasks.denoise import check_output_type
from perfuse.tasks.encoding import STATES, position_ids
from perfuse.tasks.family import family_task, pooled_conditions
from perfuse.tasks.flow import prepare_flow_schedule, resized_from_picture
from perfuse.tasks.guiders import EmbeddedGuidance
from perfuse.tasks.image_prompt_flow import FLUX_IMAGE_PROMPT, encode_flux_images
from perfuse.tasks.inpainting import inpainting_of
from perfuse.tasks.prompts.sequences import check_length, encode_sequence
from perfuse.tasks.text import Prompt, encode, guider_for, read_conditions
from perfuse.tasks.text_to_image import checked_texts
from perfuse.tasks.text_to_image_xl import check_pooled, second_texts

__all__ = [
    "FLUX_IMAGE_TO_IMAGE",
    "FLUX_INPAINTING",
    "FLUX_TEXT_TO_IMAGE",
    "encode_prompt",
    "read_prompts",
]

_MOST = 512
#: Scales that Diffusers' classes have by default; a model that takes none is not asked for them.
_USUAL = (3.5, 7.0, 30.0)


@step(outputs=("prompts", "negatives", "count", "guider"))
def read_prompts(
    tools: Tools,
    prompt: Prompt,
    negative_prompt: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    guidance_scale: float,
    true_cfg_scale: float,
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
    if guider is not None:
        return {**texts, "guider": guider_for(tools, guider, guidance_scale, guidance_rescale)}
    check_distilled(tools, guidance_scale)
    negative = negative_prompt is not None or negative_prompt_embeds is not None
    if true_cfg_scale > 1 and not negative:
        warnings.warn(
            f"true_cfg_scale={true_cfg_scale} was given without a negative prompt, from which it "
            "would lead away; it changes nothing. Give negative_prompt too.",
            stacklevel=2,
        )
    scale = true_cfg_scale if negative else 1.0
    usual = EmbeddedGuidance(guidance_scale=guidance_scale, true_cfg_scale=scale)
    return {**texts, "guider": usual}


def check_distilled(tools: Tools, scale: float) -> None:
    """Warn of a guidance scale that the denoiser has no input for."""
    if tools.spec.denoiser.guidance == "embedded" or scale <= 1 or scale in _USUAL:
        return
    warnings.warn(
        f"guidance_scale={scale} was given; this model was distilled to draw in few steps without "
        "guidance (guidance_embeds is false in its config), so the scale changes nothing.",
        stacklevel=2,
    )


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_2: Prompt,
    negative_prompt_2: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    pooled_prompt_embeds: Array | None,
    negative_pooled_prompt_embeds: Array | None,
    num_images_per_prompt: int,
    max_sequence_length: int,
    guider: Guider,
) -> State:
    """T5's states and CLIP's pooled ones, each [pictures, …], by condition of the guider."""
    check_pooled("prompt_embeds", prompt_embeds, pooled_prompt_embeds)
    check_pooled("negative_prompt_embeds", negative_prompt_embeds, negative_pooled_prompt_embeds)

    def read(texts: list[str], texts_2: list[str]) -> Mapping[str, Array]:
        remedy = "It counts for the pooled text alone; the other encoder reads more."
        pooled = encode(tools, "text_encoder", "tokenizer", texts, remedy=remedy)
        states, _ = encode_sequence(
            tools,
            "text_encoder_2",
            "tokenizer_2",
            texts_2,
            length=max_sequence_length,
            hides_padding=False,
        )
        return pooled_conditions(states, pooled["pooler_output"])

    def positive() -> Mapping[str, Array]:
        if prompt_embeds is not None:
            return pooled_conditions(prompt_embeds, pooled_prompt_embeds)
        return read(prompts, second_texts(prompt_2, "prompt_2", prompts))

    def negative() -> Mapping[str, Array]:
        if negative_prompt_embeds is not None:
            return pooled_conditions(negative_prompt_embeds, negative_pooled_prompt_embeds)
        texts = negatives or [""] * count
        return read(texts, second_texts(negative_prompt_2, "negative_prompt_2", texts))

    conditions = read_conditions(
        guider,
        num_images_per_prompt,
        positive=positive,
        negative=negative,
        empty=lambda: read([""] * count, [""] * count),
    )
    return {"conditions": conditions}


_ENCODED = (
    "prompt prompt_2 device num_images_per_prompt prompt_embeds pooled_prompt_embeds "
    "max_sequence_length lora_scale"
)


def _encoded(conditions: Mapping[str, Mapping[str, Array]]) -> tuple[Array, ...]:
    """Text states, pooled text, and the ids of the tokens' places [S, 3]: all zero."""
    told = conditions["positive"]
    return told[STATES], told["pooled_projections"], position_ids(told[STATES])


FLUX_TEXT_TO_IMAGE = family_task(
    {
        "prompt_2": Input(kind=str, help="The prompt that T5 reads; the prompt by default."),
        "negative_prompt_2": Input(kind=str, help="The negative prompt that T5 reads."),
        "true_cfg_scale": Input(
            default=1.0,
            kind=float,
            option="--true-cfg",
            help="Guidance away from the negative prompt; 1 or less draws without it.",
        ),
        "pooled_prompt_embeds": Input(help="Pooled text [B, P], with prompt_embeds."),
        "negative_pooled_prompt_embeds": Input(help="Pooled text, with negative_prompt_embeds."),
        "max_sequence_length": Input(
            default=_MOST, kind=int, option="--max-tokens", help="Tokens of a prompt that T5 reads."
        ),
        **FLUX_IMAGE_PROMPT,
    },
    {"num_inference_steps": 28, "guidance_scale": 3.5},
    read_prompts,
    prepare_flow_schedule,
    encode_prompt,
    encoding=Encoding(order=tuple(_ENCODED.split()), results=_encoded),
).insert(encode_flux_images, after="encode_prompt")

FLUX_IMAGE_TO_IMAGE = resized_from_picture(
    FLUX_TEXT_TO_IMAGE, {"strength": 0.6, "guidance_scale": 7.0}
)

FLUX_INPAINTING = inpainting_of(FLUX_TEXT_TO_IMAGE, 0.6).with_defaults({"guidance_scale": 7.0})
