"""Text to image with Stable Diffusion 1 and 2 (Rombach et al. 2022, arXiv:2112.10752)."""

from typing import Any

from perfuse.arrays.noise import noise_for
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import (
    check_count,
    check_output_type,
    check_size,
    decode,
    denoise_loop,
    draw_latents,
    finish,
    prepare_schedule,
)
from perfuse.tasks.encoding import STATES, encoding
from perfuse.tasks.image_prompt import IMAGE_PROMPT, encode_image_prompt
from perfuse.tasks.inputs import GUIDANCE, NOISE, OUTPUT, PROMPTS, SIZE, STEPS
from perfuse.tasks.pictures import added_channels, channels_of
from perfuse.tasks.prompts.reading import PromptReader, equally_long
from perfuse.tasks.safety import check_safety
from perfuse.tasks.text import Prompt, conditions_of, guider_for, read_texts

__all__ = ["TEXT_TO_IMAGE", "checked_texts", "prepare_latents", "read_prompts"]


def _check_states(tools: Tools, name: str, states: Array) -> None:
    """Raise ``InputError`` unless the states are [B, S, D] with the denoiser's width D."""
    taken = tools.spec.denoiser.signature.input("encoder_hidden_states")
    width = taken.shape[-1] if taken is not None else None
    shape = tuple(getattr(states, "shape", ()))
    if len(shape) != 3 or shape[-1] != width:
        found = f"an array of shape {shape}" if hasattr(states, "shape") else repr(states)
        raise InputError(f"{name} must be an array [batch, sequence, {width}]; got {found}.")


@step(outputs=())
def check_model(tools: Tools) -> State:
    """Refuse a model that needs more than text, such as an inpainting one."""
    more, channels = added_channels(tools), channels_of(tools.spec.latents)
    if more:
        raise InputError(
            f"A picture from text was asked for; this denoiser takes {channels + more} channels and the latents "
            f"have {channels}: it is made for inpainting or editing. Give image= and mask_image=, "
            "or use another checkpoint."
        )
    return {}


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
    output_type: str,
) -> State:
    """Check the inputs before anything is prepared."""
    texts = checked_texts(
        tools, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
    )
    check_output_type(output_type)
    return {**texts, "guider": guider_for(tools, guider, guidance_scale, guidance_rescale)}


def checked_texts(
    tools: Tools,
    prompt: Prompt,
    negative_prompt: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    num_images_per_prompt: int,
) -> dict[str, Any]:
    """The prompts and the negative prompts as lists, and how many prompts there are.

    Raises:
        InputError: they contradict each other, or are no texts or states of this denoiser.
    """
    if (prompt is None) == (prompt_embeds is None):
        raise InputError(
            "prompt and prompt_embeds were given both, or neither. Give exactly one of them."
        )
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise InputError(
            "Both negative_prompt and negative_prompt_embeds were given. Give at most one of them."
        )
    check_count("num_images_per_prompt", num_images_per_prompt)
    if prompt_embeds is not None:
        _check_states(tools, "prompt_embeds", prompt_embeds)
    if negative_prompt_embeds is not None:
        _check_states(tools, "negative_prompt_embeds", negative_prompt_embeds)
    prompts = read_texts(prompt, "prompt") if prompt_embeds is None else []
    count = len(prompts) if prompt_embeds is None else len(prompt_embeds)
    negatives = (
        read_texts(negative_prompt, "negative_prompt") if negative_prompt is not None else []
    )
    if len(negatives) not in (0, 1, count):
        raise InputError(
            f"{len(negatives)} negative prompts were given for {count} prompts. Give one for all, "
            "or one for each."
        )
    if (
        prompt_embeds is not None
        and negative_prompt_embeds is not None
        and tuple(prompt_embeds.shape) != tuple(negative_prompt_embeds.shape)
    ):
        raise InputError(
            f"prompt_embeds {tuple(prompt_embeds.shape)} and negative_prompt_embeds "
            f"{tuple(negative_prompt_embeds.shape)} must have the same shape."
        )
    return {
        "prompts": prompts,
        "negatives": negatives * (count if len(negatives) == 1 else 1),
        "count": count,
    }


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    num_images_per_prompt: int,
    guider: Guider,
    clip_skip: int | None = None,
    prompt_syntax: str | None = None,
) -> State:
    """Text states [pictures, S, D] for each condition that the guider uses.

    ``clip_skip`` is the prompt's alone, as in Diffusers.
    """
    read = PromptReader.of(tools, "text_encoder", "tokenizer", syntax=prompt_syntax)
    wanted = {branch.condition for branch in guider.branches}
    states = {"positive": prompt_embeds}
    if prompt_embeds is None:
        states["positive"] = read(prompts, clip_skip).states
    if "negative" in wanted:
        states["negative"] = negative_prompt_embeds
        if negative_prompt_embeds is None:
            states["negative"] = read(negatives or [""] * count).states
    if "empty" in wanted:
        states["empty"] = read([""] * count).states
    if prompt_syntax is not None:
        states = equally_long(states, read.empty)
    encoded = {name: {"encoder_hidden_states": array} for name, array in states.items()}
    return {"conditions": conditions_of(encoded, num_images_per_prompt)}


@step(outputs=("noise", "seeds", "latents"))
def prepare_latents(
    tools: Tools,
    schedule: Schedule,
    count: int,
    num_images_per_prompt: int,
    height: int,
    width: int,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None,
) -> State:
    """The initial latents of every picture."""
    batch = count * num_images_per_prompt
    noise = noise_for(seed, generator, batch=batch, mode=noise_mode)
    drawn = draw_latents(tools, noise, schedule, (batch, height, width), latents)
    return {"noise": noise, "seeds": noise.seeds, "latents": drawn}


TEXT_TO_IMAGE = Task(
    name="text-to-image",
    inputs={
        "prompt": Input(kind=str, help="What to draw."),
        "negative_prompt": Input(kind=str, option="--negative-prompt", help="What not to draw."),
        **SIZE,
        **STEPS,
        **GUIDANCE,
        "num_images_per_prompt": Input(
            default=1, kind=int, option="--num-images", help="Pictures to draw."
        ),
        **NOISE,
        "prompt_embeds": Input(help="Text states [B, S, D] instead of a prompt."),
        "negative_prompt_embeds": Input(help="Text states instead of a negative prompt."),
        **PROMPTS,
        **IMAGE_PROMPT,
        **OUTPUT,
    },
    steps=(
        check_model,
        read_prompts,
        check_size,
        prepare_schedule,
        encode_prompt,
        encode_image_prompt,
        prepare_latents,
        *denoise_loop,
        decode,
        check_safety,
        finish,
    ),
    encoding=encoding(
        "prompt device num_images_per_prompt do_classifier_free_guidance negative_prompt "
        "prompt_embeds negative_prompt_embeds lora_scale clip_skip",
        ("positive", STATES),
        ("negative", STATES),
    ),
)
