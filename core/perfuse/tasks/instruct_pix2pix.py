"""Editing a picture by an instruction (Brooks et al. 2022, arXiv:2211.09800)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.denoise import CHANNELS, check_size
from perfuse.tasks.guiders.instruct_pix2pix import InstructPix2PixGuidance
from perfuse.tasks.pictures import (
    IMAGE,
    added_channels,
    for_batch,
    is_latents,
    moments_of,
    read_image,
)
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE
from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL

__all__ = ["INSTRUCT_PIX2PIX", "INSTRUCT_PIX2PIX_XL"]


@step(outputs=())
def check_model(tools: Tools) -> State:
    """Refuse a denoiser that does not take a picture's latents besides its own."""
    more, channels = added_channels(tools), tools.spec.latents.channels
    if more != channels:
        raise InputError(
            f"Editing by an instruction was asked for; this denoiser takes {more} channels besides "
            f"the latents' {channels}, and a model made for it {channels}. Use such a model."
        )
    return {}


@step(outputs=("guider",))
def choose_guider(
    tools: Tools,
    guider: Any,
    guidance_scale: float,
    image_guidance_scale: float,
    guidance_rescale: float,
) -> State:
    """The guider given, or the one for instructions."""
    usual = InstructPix2PixGuidance(
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
        guidance_rescale=guidance_rescale,
    )
    return {"guider": usual if guider is None else guider}


@step(outputs=("picture",))
def read_sized_image(tools: Tools, image: Any, height: int, width: int) -> State:
    """The pictures [B, 3, H, W] in [-1, 1], brought to the size asked for, or the latents given."""
    from perfuse.arrays import to_numpy
    from perfuse.arrays.pictures import preprocess

    if is_latents(tools, image):
        return {"picture": to_numpy(image)}
    return {"picture": preprocess(image, height, width, multiple=tools.spec.size_multiple)}


@step(outputs=("conditions",))
def add_picture(
    tools: Tools,
    conditions: Mapping[str, Mapping[str, Array]],
    picture: Array,
    count: int,
    num_images_per_prompt: int,
) -> State:
    """The conditions with the picture's latents, and one more without the picture.

    The latents are the means that the autoencoder gives, without its scaling factor but for CosXL
    Edit, which a setting of the class says.
    """
    mean = picture if is_latents(tools, picture) else moments_of(tools, picture)[0]
    if tools.spec.options.get("is_cosxl_edit"):
        mean = tools.spec.latents.encode(mean)
    latents = for_batch(mean, count * num_images_per_prompt, "images")
    shown = {name: {**arrays, CHANNELS: latents} for name, arrays in conditions.items()}
    if "negative" in shown:
        shown["neither"] = {**shown["negative"], CHANNELS: np.zeros_like(latents)}
    return {"conditions": shown}


_MORE = {
    "image_guidance_scale": Input(
        default=1.5,
        kind=float,
        option="--image-guidance",
        help="How closely to keep to the picture; less than 1 draws without guidance.",
    )
}


def _instructed(task: Task, read: Any) -> Task:
    others = dict(task.inputs)
    first = {"prompt": others.pop("prompt"), **IMAGE, **_MORE}
    named = {node.name: node for node in task.steps}
    replaced = {"check_model": check_model} | ({"check_size": read} if read is read_image else {})
    if read is read_image:
        del others["height"], others["width"]
    changed = Task(
        name="instruct-pix2pix",
        inputs={**first, **others},
        steps=tuple(replaced.get(name, node) for name, node in named.items()),
    )
    if read is not read_image:
        changed = changed.insert(read, after=check_size.name)
    changed = changed.insert(choose_guider, before="read_prompts")
    return changed.insert(add_picture, after="encode_prompt")


INSTRUCT_PIX2PIX = _instructed(TEXT_TO_IMAGE, read_image).with_defaults(
    {"num_inference_steps": 100}
)
INSTRUCT_PIX2PIX_XL = _instructed(TEXT_TO_IMAGE_XL, read_sized_image).with_defaults(
    {"num_inference_steps": 100}
)
