"""Pictures with Qwen-Image (arXiv:2508.02324): from text, from a picture, and inside a mask."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.models.positions import HIDDEN
from perfuse.tasks.denoise import check_output_type
from perfuse.tasks.encoding import STATES, seen
from perfuse.tasks.family import family_task
from perfuse.tasks.flow import prepare_flow_schedule, resized_from_picture
from perfuse.tasks.guiders.length_preserving import LengthPreservingGuidance
from perfuse.tasks.inpainting import inpainting_of
from perfuse.tasks.masked_prompts import masked_conditions
from perfuse.tasks.prompts.language import LanguageReader, fixed_length
from perfuse.tasks.prompts.sequences import check_length
from perfuse.tasks.text import Prompt, guider_for
from perfuse.tasks.text_to_image import checked_texts

__all__ = [
    "QWEN_IMAGE_TO_IMAGE",
    "QWEN_INPAINTING",
    "QWEN_TEXT_TO_IMAGE",
    "filled_up",
    "template_of",
    "told_of_states",
]

_MOST = 1024


@step(outputs=("prompts", "negatives", "count", "guider"))
def read_prompts(
    tools: Tools,
    prompt: Prompt,
    negative_prompt: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    guidance_scale: float | None,
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
        return {**texts, "guider": guider_for(tools, guider, true_cfg_scale, guidance_rescale)}
    if guidance_scale is not None:
        warnings.warn(
            f"guidance_scale={guidance_scale} was given, for models that were distilled with it; "
            "this one was not, so the scale changes nothing. Give true_cfg_scale.",
            stacklevel=2,
        )
    negative = negative_prompt is not None or negative_prompt_embeds is not None
    scale = true_cfg_scale if negative else 1.0
    return {**texts, "guider": LengthPreservingGuidance(guidance_scale=scale)}


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_embeds: Array | None,
    prompt_embeds_mask: Array | None,
    negative_prompt_embeds: Array | None,
    negative_prompt_embeds_mask: Array | None,
    num_images_per_prompt: int,
    max_sequence_length: int,
    guider: Guider,
) -> State:
    """The states of each prompt, without those of the text before it, filled up to the longest."""
    conditions = masked_conditions(
        guider,
        num_images_per_prompt,
        lambda texts: _read(tools, texts, max_sequence_length),
        positive=(prompts, prompt_embeds, prompt_embeds_mask),
        negative=(
            negatives or [""] * count,
            negative_prompt_embeds,
            negative_prompt_embeds_mask,
        ),
        of_states=told_of_states,
        needs_mask=False,
    )
    return {"conditions": conditions}


def _read(tools: Tools, texts: list[str], longest: int) -> Mapping[str, Array]:
    read = LanguageReader(tools=tools)
    fixed = fixed_length(tools, tools.spec.denoiser.name, "encoder_hidden_states")
    longest = longest if fixed is None else min(longest, fixed)
    start = tools.attribute("prompt_template_encode_start_idx")
    tokens = read.tokens(texts, longest + start, template=template_of(tools))
    states = to_numpy(read(tokens.input_ids, tokens.attention_mask))
    each = [one[mask != 0][start:] for one, mask in zip(states, tokens.attention_mask, strict=True)]
    return filled_up(each, fixed)


def template_of(tools: Tools) -> tuple[str, str]:
    """The text before and after a prompt, of ``prompt_template_encode``, which a caller may set.

    Raises:
        InputError: it has not one place for a prompt.
    """
    template = tools.attribute("prompt_template_encode")
    if not isinstance(template, str) or template.count("{}") != 1:
        raise InputError(
            f"prompt_template_encode is {template!r}. Write {{}} once, where the prompt goes."
        )
    before, _, after = template.partition("{}")
    return before, after


def filled_up(each: list[Array], length: int | None) -> Mapping[str, Array]:
    """The conditions of texts' states [S, D], filled up to the longest, or to ``length``."""
    most = max(map(len, each)) if length is None else length
    states = np.stack([np.pad(one, ((0, most - len(one)), (0, 0))) for one in each])
    lengths = np.asarray([len(one) for one in each])
    return told_of_states(states, np.arange(most) < lengths[:, None])


def told_of_states(states: Array, seen: Any) -> Mapping[str, Array]:
    """The conditions of states [B, S, D] of which those count that are ``seen``, [B, S]."""
    bias = np.where(np.asarray(seen) != 0, np.float32(0), HIDDEN)
    return {"encoder_hidden_states": states, "text_bias": bias}


_ENCODED = (
    "prompt",
    "device",
    "num_images_per_prompt",
    "prompt_embeds",
    "prompt_embeds_mask",
    "max_sequence_length",
)


def _encoded(conditions: Mapping[str, Mapping[str, Array]]) -> tuple[Array | None, ...]:
    """Text states, and their mask; none where all tokens count."""
    told = conditions["positive"]
    mask = seen(told["text_bias"])
    return told[STATES], None if mask.all() else mask


QWEN_TEXT_TO_IMAGE = family_task(
    {
        "true_cfg_scale": Input(
            default=4.0,
            kind=float,
            option="--true-cfg",
            help="Guidance away from the negative prompt; without one, or with 1 or less, none.",
        ),
        "guidance_scale": Input(
            kind=float, option="--guidance", help="For models distilled with it; else of no use."
        ),
        "prompt_embeds_mask": Input(help="0 for what fills prompt_embeds up, [B, S]."),
        "negative_prompt_embeds_mask": Input(help="0 for what fills negative_prompt_embeds up."),
        "max_sequence_length": Input(
            default=512, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
        ),
    },
    {},
    read_prompts,
    prepare_flow_schedule,
    encode_prompt,
    encoding=Encoding(order=_ENCODED, results=_encoded, defaults={"max_sequence_length": 1024}),
)

QWEN_IMAGE_TO_IMAGE = resized_from_picture(QWEN_TEXT_TO_IMAGE, {"strength": 0.6})

QWEN_INPAINTING = inpainting_of(QWEN_TEXT_TO_IMAGE, 0.6)
