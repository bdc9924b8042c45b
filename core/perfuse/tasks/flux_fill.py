"""Inpainting and outpainting with FLUX.1 Fill, whose denoiser takes the mask and the masked picture.

Beside the picture's tokens it takes those of the masked picture, and of each latent the pixels of the
mask that it stands for: 64 channels more, packed as the others are.
"""

from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.arrays.noise import noise_for
from perfuse.contract.spec import Array
from perfuse.contract.steps import State, Tools, step
from perfuse.errors import InputError
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import check_latents
from perfuse.tasks.flux import FLUX_TEXT_TO_IMAGE
from perfuse.tasks.inpainting import inpainting_of
from perfuse.tasks.pictures import added_channels, channels_of, encode_picture, for_batch

__all__ = ["FLUX_FILL"]


@step(outputs=())
def check_model(tools: Tools) -> State:
    """Refuse a denoiser whose further channels are not a masked picture and its mask."""
    layout, more = tools.spec.latents, added_channels(tools)
    own = channels_of(layout)
    wanted = own + 4 * layout.downscale**2
    if more != wanted:
        raise InputError(
            f"Filling was asked for; this denoiser takes {more} channels beside the latents' {own}. "
            f"One that was made for it takes {wanted}. For any other, use FluxInpaintPipeline."
        )
    return {}


@step(outputs=("noise", "seeds", "latents", "channels"))
def prepare_filled(
    tools: Tools,
    schedule: Schedule,
    picture: Array,
    mask: Array,
    count: int,
    num_images_per_prompt: int,
    height: int,
    width: int,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None,
    masked_image_latents: Array | None,
) -> State:
    """The picture with noise, and the channels that follow: masked picture and mask, packed."""
    layout, batch = tools.spec.latents, count * num_images_per_prompt
    noise = noise_for(seed, generator, batch=batch, mode=noise_mode)
    if latents is None:
        original = for_batch(encode_picture(tools, picture, noise), batch, "images")
        fresh = noise.normal(layout.shape(batch, height, width))
        start = layout.pack(schedule.add_noise(0, original, fresh))
    else:
        start = check_latents(tools, latents, (batch, height, width))
    if masked_image_latents is not None:
        channels = for_batch(to_numpy(masked_image_latents), batch, "images")
    else:
        masked = for_batch(encode_picture(tools, picture * (1 - mask), noise), batch, "images")
        pixels = for_batch(_by_latent(mask, layout.downscale), batch, "masks")
        channels = np.concatenate([layout.pack(masked), layout.pack(pixels)], axis=2)
    return {"noise": noise, "seeds": noise.seeds, "latents": start, "channels": channels}


def _by_latent(mask: Array, scale: int) -> Array:
    """The pixels of a mask [B, 1, H, W] as channels of the latents that they lie in, row by row."""
    batch, _, height, width = mask.shape
    split = mask.reshape(batch, height // scale, scale, width // scale, scale)
    moved = split.transpose(0, 2, 4, 1, 3)
    return moved.reshape(batch, scale * scale, height // scale, width // scale)


FLUX_FILL = (
    inpainting_of(FLUX_TEXT_TO_IMAGE, 1.0)
    .without("keep_rest")
    .without("place_kept")
    .replace("check_model", check_model)
    .replace("prepare_masked", prepare_filled)
    .with_defaults({"guidance_scale": 30.0, "num_inference_steps": 50})
)
