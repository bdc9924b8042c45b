"""Pictures with Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206).

The transformer reads the penultimate states of two CLIPs, beside each other, and T5's after them;
T5 may be missing. Layers are skipped for guidance as Stability AI does it with 3.5.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perfuse.arrays import concatenate, is_torch, join_features, place
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.denoise import check_count, check_output_type
from perfuse.tasks.encoding import STATES, encoding
from perfuse.tasks.family import family_task, pooled_conditions
from perfuse.tasks.flow import flow_schedule, mu_of, resized_from_picture
from perfuse.tasks.guiders import SkipLayerGuidance
from perfuse.tasks.image_prompt_flow import SD3_IMAGE_PROMPT, encode_sd3_image
from perfuse.tasks.inpainting import inpainting_of
from perfuse.tasks.prompts.encoder import TextEncoder
from perfuse.tasks.prompts.reading import tokenised
from perfuse.tasks.prompts.sequences import check_length, encode_sequence
from perfuse.tasks.text import Prompt, guider_for, read_conditions
from perfuse.tasks.text_to_image import checked_texts
from perfuse.tasks.text_to_image_xl import check_pooled, second_texts

__all__ = ["SD3_IMAGE_TO_IMAGE", "SD3_INPAINTING", "SD3_TEXT_TO_IMAGE"]

_MOST = 512


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
    num_inference_steps: int,
    sigmas: Any,
    max_sequence_length: int,
    skip_guidance_layers: Any,
    skip_layer_guidance_scale: float,
    skip_layer_guidance_start: float,
    skip_layer_guidance_stop: float,
    output_type: str,
) -> State:
    """Check the inputs, and choose the guidance."""
    check_output_type(output_type)
    check_length(max_sequence_length, _MOST)
    texts = checked_texts(
        tools, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
    )
    if guider is not None or skip_guidance_layers is None or guidance_scale <= 1:
        return {**texts, "guider": guider_for(tools, guider, guidance_scale, guidance_rescale)}
    steps = num_inference_steps if sigmas is None else len(sigmas)
    check_count("num_inference_steps", steps)
    skipping = SkipLayerGuidance(
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        skip_layer_guidance_scale=skip_layer_guidance_scale,
        skip_layer_guidance_start=skip_layer_guidance_start,
        skip_layer_guidance_stop=_whole_steps(skip_layer_guidance_stop, steps),
        skip_layer_guidance_layers=_layers(skip_guidance_layers),
    )
    return {**texts, "guider": skipping}


def _whole_steps(stop: float, steps: int) -> float:
    """The fraction at which skipping stops; in Diffusers' pipeline a part of a step counts as one."""
    return min((math.ceil(stop * steps) + 0.5) / steps, 1.0)


def _layers(numbers: Any) -> tuple[str, ...]:
    whole = isinstance(numbers, Sequence) and all(type(one) is int for one in numbers)
    if not whole or not numbers:
        raise InputError(
            f"skip_guidance_layers must be numbers of blocks, such as [7, 8, 9]; got {numbers!r}."
        )
    return tuple(rf"^transformer_blocks\.{one}$" for one in numbers)


@step(outputs=("schedule",), name="prepare_schedule")
def prepare_schedule(
    tools: Tools,
    num_inference_steps: int,
    timesteps: Any,
    sigmas: Any,
    eta: float,
    height: int,
    width: int,
    mu: float | None,
    strength: float | None = None,
) -> State:
    """The scheduler's own steps, shifted by ``mu``, or by the picture's size if it says so."""
    layout = tools.spec.latents.dims(height, width)
    patch = tools.spec.denoiser.dim("latent_height").multiple
    tokens = (layout["latent_height"] // patch) * (layout["latent_width"] // patch)
    schedule = flow_schedule(
        tools,
        num_inference_steps,
        sigmas=sigmas,
        mu=mu_of(tools, tokens) if mu is None else mu,
        timesteps=timesteps,
        eta=eta,
        strength=strength,
    )
    return {"schedule": schedule}


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_2: Prompt,
    prompt_3: Prompt,
    negative_prompt_2: Prompt,
    negative_prompt_3: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    pooled_prompt_embeds: Array | None,
    negative_pooled_prompt_embeds: Array | None,
    num_images_per_prompt: int,
    max_sequence_length: int,
    clip_skip: int | None,
    guider: Guider,
) -> State:
    """States of all encoders and pooled ones of both CLIPs, each [pictures, …], by condition."""
    check_pooled("prompt_embeds", prompt_embeds, pooled_prompt_embeds)
    check_pooled("negative_prompt_embeds", negative_prompt_embeds, negative_pooled_prompt_embeds)

    def read(texts: list[str], name: str, second: Prompt, third: Prompt) -> Mapping[str, Array]:
        every = (
            texts,
            *(second_texts(t, f"{name}_{i}", texts) for i, t in ((2, second), (3, third))),
        )
        skip = clip_skip if name == "prompt" else None  # the prompt's alone, as in Diffusers
        return _read(tools, every, max_sequence_length, skip)

    def positive() -> Mapping[str, Array]:
        if prompt_embeds is not None:
            return pooled_conditions(prompt_embeds, pooled_prompt_embeds)
        return read(prompts, "prompt", prompt_2, prompt_3)

    def negative() -> Mapping[str, Array]:
        if negative_prompt_embeds is not None:
            return pooled_conditions(negative_prompt_embeds, negative_pooled_prompt_embeds)
        texts = negatives or [""] * count
        return read(texts, "negative_prompt", negative_prompt_2, negative_prompt_3)

    conditions = read_conditions(
        guider,
        num_images_per_prompt,
        positive=positive,
        negative=negative,
        empty=lambda: read([""] * count, "empty", None, None),
    )
    return {"conditions": conditions}


def _read(
    tools: Tools, texts: Sequence[list[str]], length: int, clip_skip: int | None
) -> Mapping[str, Array]:
    """What the denoiser reads of B prompts, each as the three encoders are given it."""
    remedy = "The third encoder reads more."
    read = []
    for end, own in zip(("", "_2"), texts, strict=False):
        encoder = TextEncoder(
            tools=tools,
            name=f"text_encoder{end}",
            tokenizer_name=f"tokenizer{end}",
            penultimate=True,
            pools=True,
        ).skipping(clip_skip)
        read.append(encoder(tokenised(encoder, own, remedy)))
    clip = join_features([one.states for one in read])
    pooled = join_features([one.pooled for one in read])
    device = clip.device if is_torch(clip) else None
    t5 = place(_t5(tools, texts[2], length), device)
    more = int(t5.shape[-1]) - int(clip.shape[-1])
    fill = place(np.zeros((*clip.shape[:2], more), dtype=np.float32), device)
    return pooled_conditions(concatenate([join_features([clip, fill]), t5], axis=1), pooled)


def _t5(tools: Tools, texts: list[str], length: int) -> Array:
    """T5's states; zeros where the checkpoint was saved or opened without it, as in Diffusers."""
    if "text_encoder_3" not in tools.spec.components:
        taken = tools.spec.denoiser.signature.input("encoder_hidden_states")
        assert taken is not None
        return np.zeros((len(texts), length, int(taken.shape[-1])), dtype=np.float32)
    states, _ = encode_sequence(
        tools, "text_encoder_3", "tokenizer_3", texts, length=length, hides_padding=False
    )
    return states


SD3_TEXT_TO_IMAGE = family_task(
    {
        "prompt_2": Input(kind=str, help="The prompt of the second CLIP; the prompt by default."),
        "prompt_3": Input(kind=str, help="The prompt that T5 reads; the prompt by default."),
        "negative_prompt_2": Input(kind=str, help="The negative prompt of the second CLIP."),
        "negative_prompt_3": Input(kind=str, help="The negative prompt that T5 reads."),
        "pooled_prompt_embeds": Input(help="Pooled text [B, P], with prompt_embeds."),
        "negative_pooled_prompt_embeds": Input(help="Pooled text, with negative_prompt_embeds."),
        "clip_skip": Input(
            kind=int, option="--clip-skip", help="Layers of the CLIPs to leave out at the end."
        ),
        "max_sequence_length": Input(
            default=256, kind=int, option="--max-tokens", help="Tokens of a prompt that T5 reads."
        ),
        "skip_guidance_layers": Input(
            help="Numbers of blocks without which the model is worse, to be led away from."
        ),
        "skip_layer_guidance_scale": Input(default=2.8, kind=float, help="How far to lead away."),
        "skip_layer_guidance_stop": Input(
            default=0.2, kind=float, help="The share of the steps at which that ends."
        ),
        "skip_layer_guidance_start": Input(
            default=0.01, kind=float, help="The share of the steps at which that begins."
        ),
        "mu": Input(kind=float, help="The shift of the schedule instead of the size's."),
        **SD3_IMAGE_PROMPT,
    },
    {"num_inference_steps": 28, "guidance_scale": 7.0},
    read_prompts,
    prepare_schedule,
    encode_prompt,
    encoding=encoding(
        "prompt prompt_2 prompt_3 device num_images_per_prompt do_classifier_free_guidance "
        "negative_prompt negative_prompt_2 negative_prompt_3 prompt_embeds negative_prompt_embeds "
        "pooled_prompt_embeds negative_pooled_prompt_embeds clip_skip max_sequence_length lora_scale",
        ("positive", STATES),
        ("negative", STATES),
        ("positive", "pooled_projections"),
        ("negative", "pooled_projections"),
    ),
).insert(encode_sd3_image, after="encode_prompt")

SD3_IMAGE_TO_IMAGE = resized_from_picture(
    SD3_TEXT_TO_IMAGE, {"strength": 0.6, "num_inference_steps": 50}
)

SD3_INPAINTING = inpainting_of(SD3_TEXT_TO_IMAGE, 0.6).with_defaults({"num_inference_steps": 50})
