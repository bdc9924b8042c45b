"""Pictures with Lumina-Image 2.0 (Qin et al. 2025, arXiv:2503.21758)."""

from collections.abc import Mapping
from typing import Any

from perfuse.arrays import concatenate, to_numpy, zeros
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, State, Tools, step
from perfuse.models.lumina2_transformer.description import captions
from perfuse.tasks.denoise import check_output_type
from perfuse.tasks.encoding import STATES, seen
from perfuse.tasks.family import family_task
from perfuse.tasks.flow import prepare_flow_schedule
from perfuse.tasks.guiders import ClassifierFreeGuidance
from perfuse.tasks.guiders.length_preserving import LengthPreservingGuidance
from perfuse.tasks.masked_prompts import MASKS, masked_conditions
from perfuse.tasks.prompts.language import LanguageReader, fixed_length
from perfuse.tasks.prompts.sequences import check_length
from perfuse.tasks.text import Prompt, guider_for
from perfuse.tasks.text_to_image import checked_texts

__all__ = ["LUMINA_2"]

#: Between what the language model is told and a prompt.
_START = " <Prompt Start> "


@step(outputs=("prompts", "negatives", "count", "guider"))
def read_prompts(
    tools: Tools,
    prompt: Prompt,
    negative_prompt: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    guidance_scale: float,
    cfg_trunc_ratio: float,
    cfg_normalization: bool,
    guider: Any,
    num_images_per_prompt: int,
    max_sequence_length: int,
    output_type: str,
) -> State:
    """Check the inputs, and choose the guidance."""
    check_output_type(output_type)
    taken = tools.spec.denoiser.dim("sequence").maximum
    assert taken is not None  # its description says it
    check_length(max_sequence_length, taken)
    texts = checked_texts(
        tools, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
    )
    if guider is not None:
        return {**texts, "guider": guider_for(tools, guider, guidance_scale, 0.0)}
    kind = LengthPreservingGuidance if cfg_normalization else ClassifierFreeGuidance
    # As in Diffusers, a scale below 1 is no guidance, and a share above 1 is all of the steps.
    scale, stop = max(guidance_scale, 1.0), min(max(cfg_trunc_ratio, 0.0), 1.0)
    return {**texts, "guider": kind(guidance_scale=scale, stop=stop)}


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    system_prompt: str | None,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    prompt_attention_mask: Array | None,
    negative_prompt_attention_mask: Array | None,
    num_images_per_prompt: int,
    max_sequence_length: int,
    guider: Guider,
) -> State:
    """The captions of each condition that the guider uses, of their own lengths."""
    read, denoiser = LanguageReader(tools=tools), tools.spec.denoiser
    fixed = fixed_length(tools, denoiser.name, "encoder_hidden_states")
    longest = max_sequence_length if fixed is None else min(max_sequence_length, fixed)
    told = tools.attribute("system_prompt") if system_prompt is None else system_prompt
    before = f"{told}{_START}"

    def read_texts(texts: list[str]) -> Mapping[str, Array]:
        each = [to_numpy(one) for one in read.of_prompts(texts, longest)]
        return captions(denoiser, each, tokens=fixed)

    def of_states(given: Array, mask: Any) -> Mapping[str, Array]:
        pairs = zip(to_numpy(given), mask != 0, strict=True)
        return captions(denoiser, [one[own] for one, own in pairs], tokens=fixed)

    conditions = masked_conditions(
        guider,
        num_images_per_prompt,
        read_texts,
        positive=([before + text for text in prompts], prompt_embeds, prompt_attention_mask),
        negative=(
            negatives or [""] * count,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        ),
        of_states=of_states,
    )
    return {"conditions": conditions}


_ENCODED = (
    "prompt do_classifier_free_guidance negative_prompt num_images_per_prompt device prompt_embeds "
    "negative_prompt_embeds prompt_attention_mask negative_prompt_attention_mask system_prompt "
    "max_sequence_length"
)


def _encoded(conditions: Mapping[str, Mapping[str, Array]]) -> tuple[Array | None, ...]:
    """Text states and their mask of the prompts, then of the negative prompts, all filled up alike."""
    told = [conditions.get(name) for name in ("positive", "negative")]
    longest = max(one[STATES].shape[1] for one in told if one is not None)
    found: list[Array | None] = []
    for one in told:
        states, mask = (None, None) if one is None else (one[STATES], seen(one["caption_bias"]))
        found += [_filled(states, longest), _filled(mask, longest)]
    return tuple(found)


def _filled(array: Array | None, length: int) -> Array | None:
    """An array with zeros at the end of its second axis, up to a length."""
    if array is None or array.shape[1] == length:
        return array
    more = (array.shape[0], length - array.shape[1], *array.shape[2:])
    return concatenate([array, zeros(more, array)], axis=1)


LUMINA_2 = family_task(
    {
        **MASKS,
        "system_prompt": Input(
            kind=str, help="What the language model is told before a prompt; the usual by default."
        ),
        "cfg_trunc_ratio": Input(
            default=1.0, kind=float, help="The share of the steps that have guidance."
        ),
        "cfg_normalization": Input(
            default=True,
            kind=bool,
            help="Whether guidance leaves a prediction as large as it is without, row by row.",
        ),
        "max_sequence_length": Input(
            default=256, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
        ),
    },
    {"num_inference_steps": 30, "guidance_scale": 4.0},
    read_prompts,
    prepare_flow_schedule,
    encode_prompt,
    encoding=Encoding(order=tuple(_ENCODED.split()), results=_encoded),
)
