"""What tasks that start from a picture share: reading it, encoding it, mixing it with noise."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays import is_torch, place, to_numpy
from perfuse.arrays.noise import BatchNoise, noise_for
from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array, Role
from perfuse.contract.steps import REQUIRED, Input, Picture, State, Tools, step
from perfuse.errors import InputError
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import CHANNELS
from perfuse.tasks.tiling import in_pieces

__all__ = [
    "IMAGE",
    "STRENGTH",
    "added_channels",
    "channels_of",
    "embedding_of",
    "encode_picture",
    "for_batch",
    "is_latents",
    "prepare_from_picture",
    "read_image",
    "with_channels",
]

IMAGE = {
    "image": Input(
        default=REQUIRED,
        kind=Picture,
        option="--image",
        help="The picture to start from; in Python also a list, an array or latents.",
    ),
}
STRENGTH = {
    "strength": Input(
        default=0.8,
        kind=float,
        option="--strength",
        help="How much of the picture to draw anew, 0 to 1.",
    ),
}


def is_latents(tools: Tools, image: Any) -> bool:
    """Whether it is an array of latents [B, C, h, w], rather than pictures."""
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) != 4 or shape[1] != tools.spec.latents.channels:
        return False
    return is_torch(image) or shape[-1] not in (1, 3)  # numpy pictures have their channels last


@step(outputs=("picture", "height", "width"))
def read_image(
    tools: Tools, image: Any, height: int | None = None, width: int | None = None
) -> State:
    """The pictures [B, 3, H, W] in [-1, 1], or the latents given, and the size in pixels.

    A picture keeps its size, rounded down to what the model draws, where no other is asked for.
    """
    from perfuse.arrays.pictures import preprocess

    if is_latents(tools, image):
        latents, scale = to_numpy(image), tools.spec.latents.downscale
        height, width = latents.shape[-2] * scale, latents.shape[-1] * scale
        return {"picture": latents, "height": height, "width": width}
    picture = preprocess(image, height, width, multiple=tools.spec.size_multiple)
    return {"picture": picture, "height": picture.shape[-2], "width": picture.shape[-1]}


def moments_of(tools: Tools, picture: Array) -> tuple[Array, Array | None]:
    """Means and deviations of the autoencoder's latents, float32 [B, C, h, w] each.

    The deviations are ``None`` for an autoencoder that gives latents instead of a distribution.

    Raises:
        InputError: the pipeline has no latent encoder.
    """
    encoders = tools.spec.having(Role.LATENT_ENCODER)
    if not encoders:
        raise InputError(
            f"A picture was given; {tools.spec.class_name} has no latent encoder here. Open it with "
            "its autoencoder, or give latents."
        )
    program = tools.program(encoders[0].name)

    def encoded(part: Array) -> Array:
        return to_numpy(program(sample=place(part, program.torch_device))["latent_parameters"])

    layout = tools.spec.latents
    found = in_pieces(
        tools, encoded, picture, tile=layout.tile, into=layout.tile // layout.downscale
    )
    channels = layout.channels
    if found.shape[1] == channels:
        return found, None
    mean, log_variance = found[:, :channels], found[:, channels:]
    deviation: Any = np.exp(np.float32(0.5) * log_variance.clip(-30.0, 20.0))
    return mean, deviation


def encode_picture(tools: Tools, picture: Array, noise: BatchNoise) -> Array:
    """The pipeline's latents of pictures [B, 3, H, W], drawn from the autoencoder's distribution.

    Latents are returned as they are.
    """
    if is_latents(tools, picture):
        return picture
    mean, deviation = moments_of(tools, picture)
    if deviation is not None:
        mean = mean + deviation * noise.first(tuple(mean.shape))
    return tools.spec.latents.encode(mean)


def embedding_of(tools: Tools, image: Any) -> Array:
    """The image encoder's embeddings [pictures, D] of pictures, float32.

    A torch tensor is taken as pixels [pictures, 3, H, W] that are made ready already.

    Raises:
        InputError: the pipeline has no image encoder, or nothing that makes pictures ready for it.
    """
    from perfuse.arrays.image_processor import ImageProcessor

    encoders, processors = tools.spec.having(Role.IMAGE_ENCODER), tools.spec.processors
    if not encoders or "feature_extractor" not in processors:
        raise InputError(
            f"A variation was asked for; {tools.spec.class_name} has no image encoder here. Open it "
            "with its image_encoder and its feature_extractor."
        )
    program = tools.program(encoders[0].name)
    if is_torch(image):
        pixels = to_numpy(image)
    else:
        pixels = ImageProcessor.from_config(processors["feature_extractor"])(image).pixel_values
    encoded = program(pixel_values=place(pixels, program.torch_device))
    return to_numpy(encoded["image_embeds"])


def for_batch(array: Array, batch: int, name: str) -> Array:
    """Repeat pictures for the whole batch, in turn: [a, b] to [a, b, a, b].

    Raises:
        InputError: the batch is no multiple of their number.
    """
    count = len(array)
    if count > batch or batch % count:
        raise InputError(
            f"{count} {name} were given for {batch} pictures. Give one for all, one for each, or a "
            "number that divides theirs."
        )
    return np.concatenate([array] * (batch // count)) if count < batch else array


@step(outputs=("noise", "seeds", "latents"))
def prepare_from_picture(
    tools: Tools,
    schedule: Schedule,
    picture: Array,
    count: int,
    num_images_per_prompt: int,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None = None,
    denoising_start: float | None = None,
) -> State:
    """The picture's latents with the noise of the schedule's first step.

    Latents that another model has left half-way get none (``denoising_start``).
    """
    batch = count * num_images_per_prompt
    noise = noise_for(seed, generator, batch=batch, mode=noise_mode)
    if latents is not None:
        return {"noise": noise, "seeds": noise.seeds, "latents": latents}
    if len(noise.sources) > 1 and not is_latents(tools, picture):
        picture = for_batch(picture, batch, "images")  # before encoding: each has its own stream
    start = for_batch(encode_picture(tools, picture, noise), batch, "images")
    if denoising_start is None:
        start = schedule.add_noise(0, start, noise.normal(tuple(start.shape)))
    start = tools.spec.latents.pack(start)
    return {"noise": noise, "seeds": noise.seeds, "latents": start}


# Models made for editing


def added_channels(tools: Tools) -> int:
    """How many channels the denoiser takes besides those of the latents."""
    layout = tools.spec.latents
    taken = tools.spec.denoiser.signature.inputs[0].shape[layout.channel_axis]
    assert isinstance(taken, int)
    return taken - channels_of(layout)


def channels_of(layout: LatentSpec) -> int:
    """The channels of latents, once they are packed."""
    smallest = layout.shape(1, layout.multiple, layout.multiple)
    packed = layout.pack(np.empty(smallest, dtype=np.float32))
    return int(packed.shape[layout.channel_axis])


def with_channels(
    conditions: Mapping[str, Mapping[str, Array]], channels: Array
) -> dict[str, dict[str, Array]]:
    """The conditions with channels [pictures, C, h, w] to follow those of the sample, for each."""
    return {name: {**arrays, CHANNELS: channels} for name, arrays in conditions.items()}
