"""Variations of a picture with Stable unCLIP: its CLIP embedding, with noise, beside the prompt.

Ramesh et al. 2022 (arXiv:2204.06125) draw from CLIP's image embeddings; Stable unCLIP adds as much
noise to one as the caller says, and tells the denoiser how much that was.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays import place, to_numpy
from perfuse.arrays.noise import BatchNoise, noise_for
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array, Role
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.schedulers import Schedule, scheduler_from_config
from perfuse.tasks.denoise import check_latents, draw_latents
from perfuse.tasks.pictures import IMAGE, embedding_of
from perfuse.tasks.text import repeat
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE

__all__ = ["UNCLIP"]

_NOISING = "image_noising_scheduler"


@step(outputs=("prompt",))
def read_words(
    tools: Tools,
    image: Any,
    image_embeds: Array | None,
    prompt: Any,
    prompt_embeds: Array | None,
    noise_level: int,
) -> State:
    """Check what there is of pictures; the prompts are empty where none was given."""
    if (image is None) == (image_embeds is None):
        raise InputError(
            "image and image_embeds were given both, or neither. Give exactly one of them."
        )
    levels = int(tools.spec.schedulers[_NOISING].get("num_train_timesteps", 1000))
    if isinstance(noise_level, bool) or not 0 <= noise_level < levels:
        raise InputError(f"noise_level must be 0 to {levels - 1}; got {noise_level!r}.")
    given = None if isinstance(prompt, str) and prompt == "" else prompt
    if given is not None or prompt_embeds is not None:
        return {"prompt": given}
    pictures: Any = image if image is not None else image_embeds
    several = isinstance(pictures, list | tuple) or getattr(pictures, "ndim", 3) != 3
    return {"prompt": [""] * len(pictures) if several else ""}


@step(outputs=("embedded",))
def encode_image(
    tools: Tools,
    image: Any,
    image_embeds: Array | None,
    count: int,
) -> State:
    """The embeddings [prompts, D] of the pictures, float32, one for each prompt or one for all."""
    width = tools.spec.one(Role.EMBEDDING_SCALE).signature.inputs[0].shape[-1]
    embedded = embedding_of(tools, image) if image_embeds is None else to_numpy(image_embeds)
    if embedded.ndim != 2 or embedded.shape[-1] != width:
        raise InputError(
            f"image_embeds must be an array [pictures, {width}]; got one of shape {embedded.shape}."
        )
    if len(embedded) not in (1, count):
        raise InputError(
            f"{len(embedded)} images were given for {count} prompts. Give one for all, or one for "
            "each."
        )
    return {"embedded": embedded}


@step(outputs=("noise", "seeds", "latents", "conditions"))
def prepare_noised(
    tools: Tools,
    schedule: Schedule,
    embedded: Array,
    conditions: Mapping[str, Mapping[str, Array]],
    guider: Guider,
    count: int,
    num_images_per_prompt: int,
    height: int,
    width: int,
    noise_level: int,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None,
) -> State:
    """The initial latents, and the conditions with the noisy embedding and its noise level.

    The embedding's noise is drawn first. Latents that the caller gives are taken as they are, as in
    Diffusers. Without a prompt's guidance the embedding is zeros.
    """
    batch = count * num_images_per_prompt
    noise = noise_for(seed, generator, batch=batch, mode=noise_mode)
    labels = _labels(tools, embedded, noise_level, noise)
    labels = repeat(labels, batch // len(labels))
    nothing = np.zeros_like(labels)
    labelled = {
        name: {**arrays, "class_labels": labels if name == "positive" else nothing}
        for name, arrays in conditions.items()
    }
    size = (batch, height, width)
    start = (
        draw_latents(tools, noise, schedule, size, None)
        if latents is None
        else check_latents(tools, latents, size)
    )
    return {"noise": noise, "seeds": noise.seeds, "latents": start, "conditions": labelled}


def _labels(tools: Tools, embedded: Array, level: int, noise: BatchNoise) -> Array:
    """What the denoiser is told [pictures, 2 D]: noisy embeddings, and sinusoids of the level."""
    levels = scheduler_from_config(tools.spec.schedulers[_NOISING])
    scaled = _run(tools, Role.EMBEDDING_SCALE, embedded)
    fresh = noise.first(tuple(embedded.shape))
    noisy = levels.add_noise(scaled, fresh, np.full(len(embedded), level))
    told = _run(tools, Role.EMBEDDING_UNSCALE, to_numpy(noisy))
    sinusoids = np.repeat(_sinusoids(level, told.shape[-1]), len(told), axis=0)
    return np.concatenate([told, sinusoids], axis=1)


def _run(tools: Tools, role: str, embeds: Array) -> Array:
    """One direction of the normaliser of embeddings."""
    component = tools.spec.one(role)
    program = tools.program(component.name)
    (given,), (made,) = component.signature.input_names, component.signature.output_names
    return to_numpy(program(**{given: place(embeds, program.torch_device)})[made])


def _sinusoids(level: int, width: int) -> Array:
    """Cosines, then sines, of a noise level: float32 [1, width] (Vaswani et al. 2017, 3.5)."""
    half = width // 2
    exponents = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    phase = np.float32(level) * np.exp(exponents)[None]
    both = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    return np.pad(both, ((0, 0), (0, width % 2)))


_MORE = {
    "prompt": Input(default="", kind=str, help="What to draw besides; it may be left out."),
    "latents": Input(help="Latents [B, C, h, w] to begin with, instead of noise from the seed."),
    "noise_level": Input(
        default=0,
        kind=int,
        option="--noise-level",
        help="How much noise to add to the picture: more draws more anew.",
    ),
    "image_embeds": Input(help="CLIP's embeddings [B, D] of pictures, instead of pictures."),
}


def _unclip() -> Task:
    image = dataclasses.replace(IMAGE["image"], default=None, help="The picture to vary.")
    task = Task(
        name="unclip",
        inputs={"image": image, **TEXT_TO_IMAGE.inputs, **_MORE},
        steps=(read_words, *TEXT_TO_IMAGE.steps),
    )
    task = task.insert(encode_image, after="encode_prompt")
    return task.replace("prepare_latents", prepare_noised)


UNCLIP = _unclip().with_defaults({"num_inference_steps": 20, "guidance_scale": 10.0})
