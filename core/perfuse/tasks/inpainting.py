"""Inpainting with Stable Diffusion: draw a part of a picture anew, and keep the rest.

A model made for it takes the mask and the masked picture as further channels (Rombach et al. 2022,
arXiv:2112.10752, section 4.5). With any other, what is to be kept is put back after each step, at the
noise level of the next one (Lugmayr et al. 2022, arXiv:2201.09865, section 4.1).
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from perfuse.arrays import is_torch, place, to_numpy
from perfuse.arrays.masks import Box, crop_region, overlaid
from perfuse.arrays.noise import BatchNoise, noise_for
from perfuse.contract.spec import Array, Role
from perfuse.contract.steps import REQUIRED, Input, Picture, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import draw_latents
from perfuse.tasks.pictures import (
    IMAGE,
    STRENGTH,
    added_channels,
    channels_of,
    encode_picture,
    for_batch,
    is_latents,
    with_channels,
)
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE

__all__ = ["INPAINTING", "inpainting_of"]

#: The mask, the latents to keep and the noise to bring them to a step's level, each [B, …].
Kept: TypeAlias = tuple[Array, Array, Array]


@step(outputs=())
def check_model(tools: Tools) -> State:
    """Refuse a denoiser whose further channels are not a mask and a masked picture."""
    more, channels = added_channels(tools), channels_of(tools.spec.latents)
    if more not in (0, channels + 1):
        raise InputError(
            f"Inpainting was asked for; this denoiser takes {more} channels besides the latents' "
            f"{channels}. A model for inpainting takes {channels + 1}, any other none. Use another."
        )
    return {}


@step(outputs=("picture", "mask", "box"))
def read_masked(
    tools: Tools,
    image: Any,
    mask_image: Any,
    height: int,
    width: int,
    padding_mask_crop: int | None,
    output_type: str,
) -> State:
    """The pictures [B, 3, H, W] in [-1, 1], their masks [B, 1, H, W] of 0 and 1, and the part."""
    from perfuse.arrays.pictures import preprocess, preprocess_mask

    box = None
    if padding_mask_crop is not None:
        box = _box(image, mask_image, (width, height), padding_mask_crop, output_type)
        image, mask_image = _part(image, box, width, height), _part(mask_image, box, width, height)
    mask = preprocess_mask(mask_image, height, width, multiple=tools.spec.size_multiple)
    if is_latents(tools, image):
        return {"picture": to_numpy(image), "mask": mask, "box": box}
    picture = preprocess(image, height, width, multiple=tools.spec.size_multiple)
    return {"picture": picture, "mask": mask, "box": box}


def _box(image: Any, mask: Any, size: tuple[int, int], pad: object, output_type: str) -> Box:
    from PIL.Image import Image

    if not isinstance(image, Image) or not isinstance(mask, Image):
        raise InputError(
            "padding_mask_crop was given; it needs one PIL image and one PIL mask, and got a "
            f"{type(image).__name__} and a {type(mask).__name__}."
        )
    if image.size != mask.size:
        raise InputError(
            f"padding_mask_crop was given; the image is {image.width} x {image.height} pixels and "
            f"the mask {mask.width} x {mask.height}. Make them of one size."
        )
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
        raise InputError(f"padding_mask_crop must be a whole number of at least 0; got {pad!r}.")
    if output_type != "pil":
        raise InputError(
            f"padding_mask_crop was given with output_type {output_type!r}; the part is put back "
            "into a PIL image. Ask for output_type 'pil'."
        )
    return crop_region(mask, *size, pad=pad)


def _part(image: Any, box: Box, width: int, height: int) -> Any:
    from perfuse.arrays.masks import filled

    return filled(image.crop(box), width, height)


@step(outputs=("noise", "seeds", "latents", "kept", "channels"))
def prepare_masked(
    tools: Tools,
    schedule: Schedule,
    picture: Array,
    mask: Array,
    count: int,
    num_images_per_prompt: int,
    height: int,
    width: int,
    strength: float,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None,
    masked_image_latents: Array | None,
    denoising_start: float | None = None,
) -> State:
    """The initial latents, and what keeps the rest of the picture: further channels, or ``kept``."""
    batch = count * num_images_per_prompt
    noise = noise_for(seed, generator, batch=batch, mode=noise_mode)
    own = added_channels(tools) > 0
    original = None
    if not own or strength < 1.0 or denoising_start is not None:
        original = for_batch(encode_picture(tools, picture, noise), batch, "images")
    layout = tools.spec.latents
    shape = layout.shape(batch, height, width)
    fresh = to_numpy(latents) if latents is not None else noise.normal(shape)
    if original is not None and denoising_start is not None:
        start = layout.pack(original)
    elif original is None or strength == 1.0 or latents is not None:
        start = draw_latents(tools, noise, schedule, (batch, height, width), fresh)
    else:
        start = layout.pack(schedule.add_noise(0, original, fresh))
    small = for_batch(_smaller(mask, shape[-2:]), batch, "masks")
    masked = _masked(tools, picture, mask, masked_image_latents, noise)
    channels = None
    if own:
        channels = np.concatenate([small, for_batch(masked, batch, "images")], axis=1)
    return {
        "noise": noise,
        "seeds": noise.seeds,
        "latents": start,
        "kept": None if own else (_packed(tools, small), layout.pack(original), layout.pack(fresh)),
        "channels": channels,
    }


def _packed(tools: Tools, mask: Array) -> Array:
    """A mask [B, 1, h, w] as it masks packed latents."""
    layout = tools.spec.latents
    alike = np.broadcast_to(mask, (len(mask), layout.channels, *mask.shape[2:]))
    return layout.pack(alike)


def _smaller(mask: Array, size: tuple[int, ...]) -> Array:
    """The mask [B, 1, h, w] of the latents: the nearest pixel of each."""
    from perfuse.arrays.pictures import resize_nearest

    return resize_nearest(mask.transpose(0, 2, 3, 1), *size).transpose(0, 3, 1, 2)


def _masked(
    tools: Tools, picture: Array, mask: Array, given: Array | None, noise: BatchNoise
) -> Array:
    """The latents of the picture without the part to draw; drawn last, as in Diffusers."""
    if given is not None:
        return to_numpy(given)
    if added_channels(tools) == 0:
        # They are not used. Diffusers encodes them all the same, which takes from the noise.
        if not is_latents(tools, picture):
            noise.first(tools.spec.latents.shape(len(picture), *picture.shape[-2:]))
        return picture
    if is_latents(tools, picture):
        raise InputError(
            "image was given as latents; give masked_image_latents too, or the picture itself."
        )
    without = picture * (mask < 0.5)
    return encode_picture(tools, without, noise)


@step(outputs=("shown",))
def show_kept(tools: Tools, latents: Array, picture: Array, mask: Array) -> State:
    """What the latent decoder sees of the picture, if it takes any: ``None`` for a usual one."""
    decoders = tools.spec.having(Role.LATENT_DECODER)
    if not decoders or decoders[0].signature.input("mask") is None:
        return {"shown": None}
    if is_latents(tools, picture):
        raise InputError(
            f"image was given as latents; {decoders[0].class_name} decodes beside the picture that "
            "is kept. Give the picture itself."
        )
    batch = len(latents)
    kept = {"image": for_batch(picture, batch, "images"), "mask": for_batch(mask, batch, "masks")}
    return {"shown": kept}


@step(outputs=("conditions",))
def add_channels(
    tools: Tools, conditions: Mapping[str, Mapping[str, Array]], channels: Array | None
) -> State:
    """The conditions with the mask and the masked picture, for a model that takes them."""
    if channels is None:
        return {"conditions": conditions}
    return {"conditions": with_channels(conditions, channels)}


@step(outputs=("kept",))
def place_kept(tools: Tools, samples: tuple[Array, ...], kept: Kept | None) -> State:
    """Move what is kept to the samples' device, once."""
    if kept is None:
        return {"kept": None}
    device = samples[0].device if is_torch(samples[0]) else None
    return {"kept": tuple(place(array, device) for array in kept)}


@step(outputs=("samples",))
def keep_rest(
    tools: Tools, index: int, samples: tuple[Array, ...], schedule: Schedule, kept: Kept | None
) -> State:
    """Put back what is not to be drawn anew, at the noise level of the next step."""
    if kept is None:
        return {"samples": samples}
    mask, original, fresh = kept
    last = index + 1 == len(schedule)
    rest = original if last else schedule.add_noise(index + 1, original, fresh)
    return {"samples": ((1 - mask) * rest + mask * samples[0], *samples[1:])}


@step(outputs=("images",))
def put_back(tools: Tools, images: Any, image: Any, mask_image: Any, box: Box | None) -> State:
    """The pictures with the part that was drawn in its place, where a part was."""
    if box is None:
        return {"images": images}
    return {"images": [overlaid(mask_image, image, drawn, box) for drawn in images]}


_MORE = {
    "mask_image": Input(
        default=REQUIRED,
        kind=Picture,
        option="--mask",
        help="White where the picture is to be drawn anew.",
    ),
    "masked_image_latents": Input(
        help="Latents [B, C, h, w] of the masked picture, instead of encoding it."
    ),
    "padding_mask_crop": Input(
        kind=int,
        option="--mask-padding",
        help="Draw only what is around the mask, with so many pixels more, and put it back.",
    ),
}


def inpainting_of(task: Task, strength: float) -> Task:
    """A text-to-image task that draws a part of a picture anew."""
    others = dict(task.inputs)
    first = {"prompt": others.pop("prompt"), **IMAGE, **_MORE, **STRENGTH}
    changed = Task(
        name="inpainting",
        inputs={**first, **others},
        steps=tuple(
            {"check_model": check_model, "prepare_latents": prepare_masked}.get(node.name, node)
            for node in _with_masked(task)
        ),
    ).with_defaults({"strength": strength})
    changed = changed.insert(add_channels, after="prepare_masked")
    changed = changed.insert(place_kept, after="place_inputs").insert(keep_rest, after="advance")
    return changed.insert(put_back, after="finish")


def _with_masked(task: Task) -> tuple[Any, ...]:
    """The steps of a task, with the picture read once its size is known."""
    at = next(i for i, node in enumerate(task.steps) if node.name == "check_size") + 1
    return (*task.steps[:at], read_masked, *task.steps[at:])


# Diffusers' other inpainting pipelines decode as if nothing were kept.
INPAINTING = inpainting_of(TEXT_TO_IMAGE, 1.0).insert(show_kept, after="prepare_masked")
