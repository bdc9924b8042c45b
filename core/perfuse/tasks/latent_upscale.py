"""Upscaling a picture twice in its latents (Crowson 2022, k-diffusion's latent upscaler).

The denoiser is a k-diffusion model: it is told a noise level in place of a timestep, and what it
predicts is scaled and mixed with its input by Table 1 of Karras et al. 2022 (arXiv:2206.00364).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays import concatenate, is_torch, join_features, place, to_numpy
from perfuse.arrays.noise import noise_for
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import draw_latents
from perfuse.tasks.inputs import PROMPTS
from perfuse.tasks.pictures import (
    IMAGE,
    added_channels,
    encode_picture,
    for_batch,
    is_latents,
    with_channels,
)
from perfuse.tasks.text import conditions_of, encode
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE

__all__ = ["LATENT_UPSCALE"]

#: Features of the noise level that the picture was given before the pooled text. It is given none,
#: and the cosines and sines of nothing are ones and zeros.
_LEVEL = np.repeat(np.asarray([[1, 0]], dtype=np.float32), 64, axis=1)


@step(outputs=())
def check_model(tools: Tools) -> State:
    """Refuse a denoiser that does not take the picture's latents, and pooled text with a level."""
    signature, channels = tools.spec.denoiser.signature, tools.spec.latents.channels
    told = tools.spec.denoiser.guidance != "embedded" and signature.input("timestep_cond")
    if added_channels(tools) != channels or not told:
        raise InputError(
            "Upscaling in latents was asked for; a model made for it takes the picture's latents "
            f"besides its own, {2 * channels} channels, and timestep_cond. This denoiser takes "
            f"{signature.inputs[0].shape[1]} channels, {', '.join(signature.input_names[1:])}. "
            "Use such a model."
        )
    return {}


@step(outputs=("picture", "height", "width"))
def read_small(tools: Tools, image: Any) -> State:
    """The pictures [B, 3, h, w] in [-1, 1] or latents, and the size of what is drawn: twice theirs.

    A picture keeps its size, rounded down to what the model takes.
    """
    from perfuse.arrays.pictures import preprocess

    scale, multiple = tools.spec.latents.downscale, tools.spec.size_multiple // 2
    latents = _latents(tools, image)
    if latents is None:
        picture = preprocess(image, multiple=multiple, resample="bicubic")
        height, width = picture.shape[-2:]
        return {"picture": picture, "height": 2 * height, "width": 2 * width}
    height, width = (size * scale for size in latents.shape[-2:])
    if height % multiple or width % multiple:
        raise InputError(
            f"The latents {latents.shape[-2]} x {latents.shape[-1]} were given as image; this model "
            f"takes multiples of {multiple // scale} there. Give such latents, or a picture."
        )
    return {"picture": latents, "height": 2 * height, "width": 2 * width}


def _latents(tools: Tools, image: Any) -> Array | None:
    """The latents [B, C, h, w] that were given, one or several; ``None`` for pictures."""
    given = list(image) if isinstance(image, list | tuple) else [image]
    batches = [one[None] if is_torch(one) and one.ndim == 3 else one for one in given]
    if not batches or not all(is_latents(tools, one) for one in batches):
        return None
    if len({tuple(one.shape[1:]) for one in batches}) != 1:
        shapes = ", ".join(str(tuple(one.shape)) for one in batches)
        raise InputError(f"The latents differ in shape: {shapes}. Give latents of one size.")
    return concatenate([to_numpy(one) for one in batches])


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    pooled_prompt_embeds: Array | None,
    negative_pooled_prompt_embeds: Array | None,
    guidance_scale: float,
    num_images_per_prompt: int,
    guider: Guider,
) -> State:
    """Text states, and the pooled text with the noise level, by condition of the guider.

    With a guidance scale of 0 the prompt is empty, as in Diffusers.
    """
    for states, pooled, name in (
        (prompt_embeds, pooled_prompt_embeds, "prompt_embeds"),
        (negative_prompt_embeds, negative_pooled_prompt_embeds, "negative_prompt_embeds"),
    ):
        if (states is None) != (pooled is None):
            raise InputError(
                f"Only one of {name} and {name.replace('prompt', 'pooled_prompt')} was given. "
                "Give both or neither."
            )

    def read(texts: list[str]) -> dict[str, Array]:
        found = encode(tools, "text_encoder", "tokenizer", texts)
        return _told(found["unnormed_hidden_state"], found["pooler_output"])

    nothing = [""] * count
    if prompt_embeds is not None:
        encoded = {"positive": _told(prompt_embeds, pooled_prompt_embeds)}
    else:
        encoded = {"positive": read(nothing if guidance_scale == 0 else prompts)}
    wanted = {branch.condition for branch in guider.branches}
    if "negative" in wanted and negative_prompt_embeds is not None:
        encoded["negative"] = _told(negative_prompt_embeds, negative_pooled_prompt_embeds)
    elif "negative" in wanted:
        encoded["negative"] = read(negatives or nothing)
    if "empty" in wanted:
        encoded["empty"] = read(nothing)
    return {"conditions": conditions_of(encoded, num_images_per_prompt)}


def _told(states: Array, pooled: Array) -> dict[str, Array]:
    """The denoiser's conditions of B prompts: states [B, S, D], and pooled text [B, P] after the level."""
    level = np.repeat(_LEVEL, len(pooled), axis=0)
    told = join_features([level, to_numpy(pooled)])
    return {"encoder_hidden_states": states, "timestep_cond": told}


@step(outputs=("noise", "seeds", "latents", "conditions"))
def prepare_small(
    tools: Tools,
    schedule: Schedule,
    picture: Array,
    conditions: Mapping[str, Mapping[str, Array]],
    count: int,
    num_images_per_prompt: int,
    height: int,
    width: int,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None,
) -> State:
    """The initial latents, and the conditions with the picture's latents at twice their size."""
    batch = count * num_images_per_prompt
    noise = noise_for(seed, generator, batch=batch, mode=noise_mode)
    if len(noise.sources) > 1 and not is_latents(tools, picture):
        picture = for_batch(picture, batch, "images")  # before encoding: each has its own stream
    small = for_batch(encode_picture(tools, picture, noise), batch, "images")
    shown = np.repeat(np.repeat(small, 2, axis=-2), 2, axis=-1)
    drawn = draw_latents(tools, noise, schedule, (batch, height, width), latents)
    return {
        "noise": noise,
        "seeds": noise.seeds,
        "latents": drawn,
        "conditions": with_channels(conditions, shown),
    }


@step(outputs=("timesteps",))
def tell_levels(tools: Tools, schedule: Schedule, timesteps: Array) -> State:
    """What the denoiser is given as timesteps: log(sigma) / 4 (Karras et al., c_noise)."""
    if any(row.noising[0] != 1.0 for row in schedule.rows):
        raise InputError(
            f"Upscaling in latents was asked for with a {type(tools.scheduler).__name__}, which has "
            "no noise levels. Use the EulerDiscreteScheduler."
        )
    levels = np.log(_sigmas(schedule)) * np.float32(0.25)
    told = np.repeat(levels[:, None], timesteps.shape[1], axis=1)
    return {"timesteps": place(told, timesteps.device if is_torch(timesteps) else None)}


@step(outputs=("predictions",))
def precondition(
    tools: Tools,
    index: int,
    samples: tuple[Array, ...],
    schedule: Schedule,
    predictions: Mapping[str, Array],
) -> State:
    """The clean sample that each branch predicts (Karras et al., c_skip and c_out).

    The denoiser's last channel is a variance, which nothing reads.
    """
    sigma = _sigmas(schedule)[index]
    skip = float(1 / (sigma**2 + 1))
    out = float(sigma * np.float32(schedule.rows[index].input_scale))
    return {
        "predictions": {
            name: skip * samples[0] + out * prediction[:, :-1]
            for name, prediction in predictions.items()
        }
    }


def _sigmas(schedule: Schedule) -> Any:
    """The noise level of each step, float32 [steps]."""
    return np.asarray([row.noising[1] for row in schedule.rows], dtype=np.float32)


_POOLED = {
    "pooled_prompt_embeds": Input(help="Pooled text [B, P], with prompt_embeds."),
    "negative_pooled_prompt_embeds": Input(help="Pooled text, with negative_prompt_embeds."),
}


def _latent_upscale() -> Task:
    others = dict(TEXT_TO_IMAGE.inputs)
    first = {"prompt": others.pop("prompt"), **IMAGE}
    for unused in ("height", "width", "ip_adapter_image", "ip_adapter_image_embeds", *PROMPTS):
        others.pop(unused)
    replaced = {
        "check_model": check_model,
        "check_size": read_small,
        "encode_prompt": encode_prompt,
        "prepare_latents": prepare_small,
    }
    plain = TEXT_TO_IMAGE.without("encode_image_prompt").without("check_safety")
    steps = tuple(replaced.get(node.name, node) for node in plain.steps)
    task = Task(name="latent-upscale", inputs={**first, **others, **_POOLED}, steps=steps)
    return task.insert(tell_levels, after="place_inputs").insert(precondition, after="predict")


LATENT_UPSCALE = _latent_upscale().with_defaults({"num_inference_steps": 75, "guidance_scale": 9.0})
