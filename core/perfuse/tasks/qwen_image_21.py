"""Pictures with Qwen-Image 2.1, from text and from pictures. They may be transparent: they have four channels."""

import warnings
from collections.abc import Mapping
from typing import Any

from perfuse.arrays import to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.models.qwen_image_21_transformer.description import told_of
from perfuse.tasks.denoise import check_count, check_output_type, check_size
from perfuse.tasks.encoding import STATES, seen
from perfuse.tasks.family import family_task
from perfuse.tasks.flow import prepare_flow_schedule
from perfuse.tasks.guiders import ClassifierFreeGuidance
from perfuse.tasks.masked_prompts import masked_conditions
from perfuse.tasks.prompts.language import LanguageReader, fixed_length
from perfuse.tasks.prompts.sequences import check_length
from perfuse.tasks.text import Prompt, guider_for
from perfuse.tasks.text_to_image import checked_texts

__all__ = ["QWEN_21_SYSTEM", "QWEN_21_TEMPLATE", "QWEN_21_TEXT_TO_IMAGE", "side_of"]

_MOST = 1024
#: What the language model is told first; its states are left out.
QWEN_21_SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
#: The text before a prompt, and after it.
QWEN_21_TEMPLATE = (
    f"{QWEN_21_SYSTEM}<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)


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
    """Check the inputs, and choose the guidance: none without a negative prompt."""
    check_output_type(output_type)
    check_length(max_sequence_length, _MOST)
    texts = checked_texts(
        tools, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
    )
    if guider is not None:
        return {**texts, "guider": guider_for(tools, guider, true_cfg_scale, guidance_rescale)}
    negative = negative_prompt is not None or negative_prompt_embeds is not None
    if guidance_scale is not None or negative != (true_cfg_scale > 1):
        warnings.warn(
            f"guidance_scale={guidance_scale} and true_cfg_scale={true_cfg_scale} were given, and "
            f"{'a' if negative else 'no'} negative prompt. This model draws without guidance, or with a "
            "negative prompt and a true_cfg_scale above 1; give both or neither.",
            stacklevel=2,
        )
    scale = true_cfg_scale if negative else 1.0
    return {**texts, "guider": ClassifierFreeGuidance(guidance_scale=scale)}


def side_of(tools: Tools, output_resolution: int | None) -> int | None:
    """The side of the square whose area is drawn, in pixels; ``None`` for the model's own.

    Raises:
        InputError: it is no whole number, or the model draws nothing that small.
    """
    if output_resolution is None:
        return None
    check_count("output_resolution", output_resolution)
    each = tools.spec.size_multiple
    if output_resolution < each:
        raise InputError(
            f"output_resolution {output_resolution} was asked for; this model draws multiples of "
            f"{each}."
        )
    return output_resolution // each * each


@step(outputs=("height", "width"), name="check_size")
def check_side(
    tools: Tools,
    height: int | None,
    width: int | None,
    output_resolution: int | None,
    count: int = 1,
    num_images_per_prompt: int = 1,
) -> State:
    """The pictures' height and width, in pixels: those asked for, or of the square asked for."""
    side = side_of(tools, output_resolution)
    return check_size(
        tools,
        height=side if height is None else height,
        width=side if width is None else width,
        count=count,
        num_images_per_prompt=num_images_per_prompt,
    )


@step(outputs=("sigmas",))
def read_levels(tools: Tools, timesteps: Any, sigmas: Any) -> State:
    """The noise levels that are given, or those of the checkpoint's author, if it has any."""
    if sigmas is None and timesteps is None:
        return {"sigmas": tools.spec.options.get("sample_sigmas")}
    return {"sigmas": sigmas}


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
    """The states of each prompt without those of the system's, filled up to the longest."""
    read = LanguageReader(tools=tools, tokenizer_name="processor")
    fixed = fixed_length(tools, tools.spec.denoiser.name, "encoder_hidden_states")
    longest = max_sequence_length if fixed is None else min(max_sequence_length, fixed)
    before = len(read.tokenizer.ids(QWEN_21_SYSTEM))

    def read_texts(texts: list[str]) -> Mapping[str, Array]:
        each = read.of_prompts(
            [text or " " for text in texts],
            longest + before,
            template=QWEN_21_TEMPLATE,
            left_out=before,
        )
        return told_of(tools.spec.denoiser, [to_numpy(one) for one in each], length=fixed)

    def of_states(given: Array, mask: Any) -> Mapping[str, Array]:
        pairs = zip(to_numpy(given), mask != 0, strict=True)
        return told_of(tools.spec.denoiser, [one[own] for one, own in pairs], length=fixed)

    conditions = masked_conditions(
        guider,
        num_images_per_prompt,
        read_texts,
        positive=(prompts, prompt_embeds, prompt_embeds_mask),
        negative=(
            negatives or [""] * count,
            negative_prompt_embeds,
            negative_prompt_embeds_mask,
        ),
        of_states=of_states,
        needs_mask=False,
    )
    return {"conditions": conditions}


_ENCODED = (
    "prompt",
    "image",
    "device",
    "num_images_per_prompt",
    "prompt_embeds",
    "prompt_embeds_mask",
    "image_pad_mask",
)


def _encoded(conditions: Mapping[str, Mapping[str, Array]]) -> tuple[Array | None, ...]:
    """Text states; their mask, but where all tokens count; and which are a picture's: none."""
    told = conditions["positive"]
    mask = seen(told["text_bias"][:, -1])  # the last token sees all that count
    return told[STATES], None if mask.all() else mask, mask < 0


QWEN_21_TEXT_TO_IMAGE = family_task(
    {
        "true_cfg_scale": Input(
            default=1.0,
            kind=float,
            option="--true-cfg",
            help="Guidance away from the negative prompt; 1 or less draws without it.",
        ),
        "guidance_scale": Input(kind=float, help="Of no use here: warns of true_cfg_scale."),
        "prompt_embeds_mask": Input(help="0 for what fills prompt_embeds up, [B, S]."),
        "negative_prompt_embeds_mask": Input(help="0 for what fills negative_prompt_embeds up."),
        "max_sequence_length": Input(
            default=_MOST, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
        ),
        "output_resolution": Input(
            kind=int,
            help="The side of the square whose area is drawn, in pixels; the model's own by default.",
        ),
        "use_kv_cache": Input(
            default=True,
            kind=bool,
            help="Of no effect: what is kept of a prompt in Diffusers is computed at each step.",
        ),
    },
    {"num_inference_steps": 40},
    read_prompts,
    check_side,
    prepare_flow_schedule,
    encode_prompt,
    encoding=Encoding(order=_ENCODED, results=_encoded),
).insert(read_levels, before="prepare_schedule")
