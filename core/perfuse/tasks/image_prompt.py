"""Image prompts: what an IP-Adapter makes of images, as further conditions of the denoiser.

Ye et al. 2023, arXiv:2308.06721. The step does nothing where the pipeline has no adapter.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays import is_torch, place, to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array, ComponentSpec, Role
from perfuse.contract.steps import Input, Picture, State, Tools, step
from perfuse.errors import InputError

__all__ = [
    "IMAGE",
    "IMAGE_PROMPT",
    "SCALES",
    "Float32",
    "adapters_of",
    "check_given",
    "check_width",
    "encode_image_prompt",
    "for_each",
    "looked_at",
    "made_ready",
    "repeated",
    "scale_of_each",
    "tokens_of",
]

#: The entry of the pipeline's options that holds each adapter's scales.
SCALES = "ip_adapter_scale"
#: The one entry of ``cross_attention_kwargs`` that a task takes.
_MASKS = "ip_adapter_masks"

#: A picture, or a list of them.
IMAGE = Input(
    kind=Picture,
    option="--ip-adapter-image",
    several=True,
    help="An image prompt, or a list: one, or several, for each adapter.",
)

IMAGE_PROMPT = {
    "ip_adapter_image": IMAGE,
    "ip_adapter_image_embeds": Input(
        help="For each adapter its images' embeddings [2, N, D], those of no image first."
    ),
    "cross_attention_kwargs": Input(help="ip_adapter_masks: where each image prompt counts."),
}

Float32 = NDArray[np.float32]


@step(outputs=("conditions",))
def encode_image_prompt(
    tools: Tools,
    conditions: Mapping[str, Mapping[str, Array]],
    guider: Guider,
    height: int,
    width: int,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: Any = None,
    cross_attention_kwargs: Mapping[str, Any] | None = None,
) -> State:
    """Add tokens of the images, masks and scales to each condition.

    Raises:
        InputError: there are images and no adapter, an adapter and no image, or they do not fit.
    """
    adapters = tools.spec.having(Role.IMAGE_PROJECTION)
    masks = _masks_given(cross_attention_kwargs)
    given = {
        "ip_adapter_image": ip_adapter_image,
        "ip_adapter_image_embeds": ip_adapter_image_embeds,
    }
    if not adapters and masks is not None:
        given = {**given, _MASKS: masks}
    if not check_given(tools, given):
        return {"conditions": conditions}
    absent = "negative" in conditions or "empty" in conditions
    pairs = (
        _of_images(tools, adapters, ip_adapter_image)
        if ip_adapter_image is not None
        else _of_embeddings(adapters, ip_adapter_image_embeds, absent)
    )
    each = for_each(masks, len(adapters), _MASKS) if masks is not None else [None] * len(adapters)
    added: dict[str, dict[str, Array]] = {name: {} for name in conditions}
    for i, (pair, mask) in enumerate(zip(pairs, each, strict=True)):
        shared = _masks_and_scales(tools, i, mask, len(pair[True][0]), (height, width))
        for name, arrays in conditions.items():
            tokens = tokens_of(tools, adapters[i], pair[name == "positive"])
            if mask is None:
                tokens = tokens.reshape(len(tokens), 1, -1, tokens.shape[-1])
            tokens = repeated(tokens, len(next(iter(arrays.values()))))
            added[name] |= {f"ip_tokens_{i}": tokens, **shared}
    return {"conditions": {name: {**conditions[name], **more} for name, more in added.items()}}


def adapters_of(denoiser: ComponentSpec) -> int:
    """How many IP-Adapters a denoiser has."""
    return sum(name.startswith("ip_scales_") for name in denoiser.signature.input_names)


def check_given(tools: Tools, given: Mapping[str, Any]) -> bool:
    """Whether there are adapters, and so images for them.

    Args:
        tools: The pipeline.
        given: The images, or in their place embeddings, by their names in the call.

    Raises:
        InputError: there are images and no adapter, an adapter and no image, or both of the same.
    """
    there = [name for name, value in given.items() if value is not None]
    if not adapters_of(tools.spec.denoiser):
        if there:
            raise InputError(
                f"{there[0]} was given; the pipeline has no IP-Adapter. Load one: "
                "pipe.load_ip_adapter(…)."
            )
        return False
    both = [name for name in there if f"{name}_embeds" in there]
    if not there or both:
        found = f"{both[0]} and {both[0]}_embeds" if both else "no image for it"
        raise InputError(
            f"The pipeline has an IP-Adapter, and {found} was given. Give ip_adapter_image or "
            "ip_adapter_image_embeds, or take the adapter out: pipe.unload_ip_adapter()."
        )
    return True


def _masks_given(kwargs: Mapping[str, Any] | None) -> Any:
    unknown = [name for name in kwargs or {} if name != _MASKS]
    if unknown:
        raise InputError(
            f"cross_attention_kwargs has {', '.join(unknown)}; this task takes {_MASKS} in it."
        )
    return None if kwargs is None else kwargs.get(_MASKS)


def for_each(values: Any, count: int, name: str) -> list[Any]:
    """A value for each adapter; ``InputError`` unless there are as many."""
    found = list(values) if isinstance(values, list | tuple) else [values]
    if hasattr(values, "shape") and len(values.shape) == 4 and name == _MASKS:
        found = [one[None] for one in values]
    if len(found) != count:
        raise InputError(
            f"{name} has {len(found)} entries; the pipeline has {count} IP-Adapters. Give one for "
            "each: an entry may itself be a list of images."
        )
    return found


# Images

#: What an adapter projects [b, N, …], for an image (True) and for none (False).
Pair = Mapping[bool, Float32]


def _of_images(tools: Tools, adapters: Sequence[ComponentSpec], images: Any) -> list[Pair]:
    """What each adapter projects, as the pipeline's image encoder sees its images."""
    pairs: list[Pair] = []
    for adapter, own in zip(
        adapters, for_each(images, len(adapters), "ip_adapter_image"), strict=True
    ):
        (wanted,) = adapter.signature.inputs
        pixels = made_ready(tools, own)
        seen = {True: looked_at(tools, pixels, wanted.name)[None]}
        # No image is a black one to an encoder's states, and a zero embedding to the rest.
        if wanted.name != "image_embeds":
            seen[False] = looked_at(tools, np.zeros_like(pixels), wanted.name)[None]
        seen.setdefault(False, np.zeros_like(seen[True]))
        check_width(adapter.name, seen[True], int(wanted.shape[-1]), "the image encoder")
        pairs.append(seen)
    return pairs


def made_ready(tools: Tools, images: Any) -> Float32:
    """Pictures as the pipeline's image encoder takes them, [N, 3, H, W].

    A torch tensor is taken as pictures that are made ready already.

    Raises:
        InputError: the pipeline has no image encoder, or nothing that makes pictures ready for it.
    """
    from perfuse.arrays.image_processor import ImageProcessor

    encoders, config = tools.spec.having(Role.IMAGE_ENCODER), tools.spec.processors
    if not encoders or "feature_extractor" not in config:
        raise InputError(
            "ip_adapter_image was given; the pipeline has no image encoder to look at it. Load the "
            "adapter with its image_encoder_folder, or give ip_adapter_image_embeds."
        )
    if is_torch(images):
        return to_numpy(images)
    pixels: Float32 = ImageProcessor.from_config(config["feature_extractor"])(images).pixel_values
    return pixels


def looked_at(tools: Tools, pixels: Float32, wanted: str) -> Float32:
    """What the image encoder gives of this name for pictures that are made ready, [N, …].

    Raises:
        InputError: it gives nothing of that name.
    """
    encoder = tools.spec.one(Role.IMAGE_ENCODER)
    if wanted not in encoder.signature.output_names:
        raise InputError(
            f"{encoder.name} is a {encoder.class_name}, which gives no {wanted}. Use the image encoder "
            "that the adapter was made with."
        )
    program = tools.program(encoder.name)
    return to_numpy(program(pixel_values=place(pixels, program.torch_device))[wanted])


def _of_embeddings(adapters: Sequence[ComponentSpec], given: Any, absent: bool) -> list[Pair]:
    """What each adapter projects, as the caller gave it: that of no image first, if it is needed."""
    pairs: list[Pair] = []
    for adapter, one in zip(
        adapters, for_each(given, len(adapters), "ip_adapter_image_embeds"), strict=True
    ):
        rank = len(adapter.signature.inputs[0].shape) + 1
        array = to_numpy(one) if hasattr(one, "shape") else None
        if array is None or array.ndim != rank or (absent and len(array) % 2):
            found = repr(one) if array is None else f"an array of shape {array.shape}"
            raise InputError(
                f"ip_adapter_image_embeds has {found}; {adapter.name} takes "
                f"[{'2' if absent else '1'}, images, {'states, ' if rank == 4 else ''}width]"
                f"{', that of no image first' if absent else ''}."
            )
        none, real = np.split(array, 2) if absent else (np.zeros_like(array), array)
        wanted = int(adapter.signature.inputs[0].shape[-1])
        check_width(adapter.name, real, wanted, "ip_adapter_image_embeds")
        pairs.append({True: real, False: none})
    return pairs


def check_width(name: str, array: Float32, wanted: int, who: str) -> None:
    """Raise ``InputError`` unless arrays are as wide as what reads them takes."""
    if array.shape[-1] != wanted:
        raise InputError(
            f"{who[0].upper()}{who[1:]} gives arrays of width {array.shape[-1]}; {name} takes "
            f"{wanted}. Use the image encoder that the adapter was made with."
        )


def tokens_of(tools: Tools, adapter: ComponentSpec, seen: Float32) -> Float32:
    """The tokens [b, N, T, C] of what was seen [b, N, …]."""
    program = tools.program(adapter.name)
    flat = np.ascontiguousarray(seen.reshape(-1, *seen.shape[2:]))
    given = {adapter.signature.inputs[0].name: place(flat, program.torch_device)}
    tokens = to_numpy(program(**given)["image_tokens"])
    return tokens.reshape(*seen.shape[:2], *tokens.shape[1:])


def repeated(tokens: Float32, pictures: int) -> Float32:
    """Arrays of image prompts for each picture that is drawn; ``InputError`` if they do not divide."""
    if pictures % len(tokens):
        raise InputError(
            f"Image prompts for {len(tokens)} pictures were given, and {pictures} are drawn. Give "
            "them for one, or for all."
        )
    return np.repeat(tokens, pictures // len(tokens), axis=0)


# Masks and scales


def _masks_and_scales(
    tools: Tools, index: int, mask: Any, images: int, size: tuple[int, int]
) -> dict[str, Float32]:
    """The masks and scales of an adapter's groups: one, or with masks one for each image."""
    signature = tools.spec.denoiser.signature
    shape, layers = signature.input(f"ip_masks_{index}"), signature.input(f"ip_scales_{index}")
    assert shape is not None and layers is not None
    levels, dims = shape.shape[1], tools.spec.latents.dims(*size)
    latents = dims["latent_height"], dims["latent_width"]
    groups = 1 if mask is None else images
    masks = np.ones((groups, int(levels), *latents), dtype=np.float32)
    if mask is not None:
        given = to_numpy(mask)
        if given.ndim != 4 or given.shape[:2] != (1, images):
            raise InputError(
                f"{_MASKS} has an array of shape {given.shape}; the adapter has {images} images, and "
                f"its masks are [1, {images}, height, width]."
            )
        masks = _downsampled(given[0], int(levels), latents)
    scale = tools.spec.options[SCALES][index]
    return {
        f"ip_masks_{index}": masks,
        f"ip_scales_{index}": scale_of_each(scale, groups, int(layers.shape[1])),
    }


def scale_of_each(scale: Any, groups: int, layers: int) -> Float32:
    """An adapter's scales [groups, layers], as ``pipe.set_ip_adapter_scale`` keeps them.

    One number for all, one for each image of the adapter, or one for each attention.

    Raises:
        InputError: there are neither one nor as many as groups.
    """
    if isinstance(scale, Mapping):
        each = np.asarray(scale["layers"], dtype=np.float32)
        return np.broadcast_to(each, (groups, layers)).copy()
    values = np.asarray(scale, dtype=np.float32).reshape(-1, 1)
    if len(values) not in (1, groups):
        raise InputError(
            f"The IP-Adapter has {len(values)} scales, and {groups} images with masks. Give one, or "
            "as many: pipe.set_ip_adapter_scale(…)."
        )
    return np.broadcast_to(values, (groups, layers)).copy()


def _downsampled(masks: Float32, levels: int, latents: tuple[int, int]) -> Float32:
    """Masks [N, H, W] for every level: as many first numbers as that level has pixels."""
    found = np.zeros((len(masks), levels, latents[0] * latents[1]), dtype=np.float32)
    high, wide = latents
    for level in range(levels):
        pixels = high * wide
        small = _at(masks, pixels)
        found[:, level, : small.shape[1]] = small
        high, wide = -(-high // 2), -(-wide // 2)
    return found.reshape(len(masks), levels, *latents)


def _at(masks: Float32, pixels: int) -> Float32:
    """Masks [N, pixels]: resized in their own aspect ratio, then cut or filled with zeros."""
    from perfuse.arrays.resize import bicubic

    height = int(math.sqrt(pixels / (masks.shape[2] / masks.shape[1])))
    height += int(pixels % max(height, 1) != 0) if height else 1
    small = bicubic(masks, height, pixels // height).reshape(len(masks), -1)
    if small.shape[1] != pixels:
        warnings.warn(
            f"{_MASKS} have another aspect ratio than the picture: give masks of its size.",
            stacklevel=2,
        )
    return np.pad(small, ((0, 0), (0, max(pixels - small.shape[1], 0))))[:, :pixels]
