"""Image prompts of flow-matching transformers: FLUX.1, Chroma, Stable Diffusion 3.

The steps do nothing where the pipeline has no adapter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.spec import Array, ComponentSpec, Role
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.image_prompt import (
    IMAGE,
    SCALES,
    Float32,
    check_given,
    check_width,
    for_each,
    looked_at,
    made_ready,
    repeated,
    scale_of_each,
    tokens_of,
)

__all__ = ["FLUX_IMAGE_PROMPT", "SD3_IMAGE_PROMPT", "encode_flux_images", "encode_sd3_image"]

FLUX_IMAGE_PROMPT = {
    "ip_adapter_image": IMAGE,
    "ip_adapter_image_embeds": Input(help="For each adapter its images' embeddings [1, N, D]."),
    "negative_ip_adapter_image": Input(
        kind=IMAGE.kind,
        option="--negative-ip-adapter-image",
        several=True,
        help="What not to draw like, for each adapter; a black picture by default.",
    ),
    "negative_ip_adapter_image_embeds": Input(help="The same as embeddings [1, N, D]."),
}

SD3_IMAGE_PROMPT = {
    "ip_adapter_image": Input(
        kind=IMAGE.kind, option=IMAGE.option, several=True, help="An image prompt."
    ),
    "ip_adapter_image_embeds": Input(
        help="The image's states [2, N, D], those of no image first; [1, N, D] without guidance."
    ),
}


@step(outputs=("conditions",), name="encode_image_prompt")
def encode_flux_images(
    tools: Tools,
    conditions: Mapping[str, Mapping[str, Array]],
    height: int,
    width: int,
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: Any = None,
    negative_ip_adapter_image: Any = None,
    negative_ip_adapter_image_embeds: Any = None,
) -> State:
    """Add tokens of the images and scales to each condition; what is not given is a black picture.

    Raises:
        InputError: there are images and no adapter, an adapter and no image, or they do not fit.
    """
    given = {
        "ip_adapter_image": ip_adapter_image,
        "ip_adapter_image_embeds": ip_adapter_image_embeds,
        "negative_ip_adapter_image": negative_ip_adapter_image,
        "negative_ip_adapter_image_embeds": negative_ip_adapter_image_embeds,
    }
    if not check_given(tools, given):
        return {"conditions": conditions}
    adapters = tools.spec.having(Role.IMAGE_PROJECTION)
    black = [np.zeros((height, width, 3), dtype=np.uint8)] * len(adapters)
    tokens: dict[str, list[Float32]] = {}
    added = {}
    for condition, arrays in conditions.items():
        name = "ip_adapter_image" if condition == "positive" else "negative_ip_adapter_image"
        if name not in tokens:
            images, embeds = given[name], given[f"{name}_embeds"]
            tokens[name] = [
                _tokens(tools, adapter, one, embedded=embeds is not None, name=name)
                for adapter, one in zip(
                    adapters,
                    for_each(embeds, len(adapters), f"{name}_embeds")
                    if embeds is not None
                    else for_each(black if images is None else images, len(adapters), name),
                    strict=True,
                )
            ]
        pictures = len(next(iter(arrays.values())))
        more = {f"ip_tokens_{i}": repeated(one, pictures) for i, one in enumerate(tokens[name])}
        added[condition] = {**arrays, **more, **_scales(tools)}
    return {"conditions": added}


def _tokens(
    tools: Tools, adapter: ComponentSpec, given: Any, *, embedded: bool, name: str
) -> Float32:
    """An adapter's tokens [b, L, C] of images or their embeddings, those of several beside each other."""
    (wanted,) = adapter.signature.inputs
    if embedded:
        seen = _array(given, f"{name}_embeds", f"{adapter.name} takes [1, images, width]")
        check_width(adapter.name, seen, int(wanted.shape[-1]), f"{name}_embeds")
    else:
        seen = looked_at(tools, made_ready(tools, given), wanted.name)[None]
        check_width(adapter.name, seen, int(wanted.shape[-1]), "the image encoder")
    tokens = tokens_of(tools, adapter, seen)
    return tokens.reshape(len(tokens), -1, tokens.shape[-1])


def _array(given: Any, name: str, takes: str) -> Float32:
    array = to_numpy(given) if hasattr(given, "shape") else None
    if array is None or array.ndim != 3:
        found = repr(given) if array is None else f"an array of shape {array.shape}"
        raise InputError(f"{name} has {found}; {takes}.")
    return array


def _scales(tools: Tools) -> dict[str, Float32]:
    """The scales [1, attentions] of each adapter."""
    denoiser, found = tools.spec.denoiser, {}
    for i, scale in enumerate(tools.spec.options[SCALES]):
        tensor = denoiser.signature.input(f"ip_scales_{i}")
        assert tensor is not None
        found[tensor.name] = scale_of_each(scale, 1, int(tensor.shape[1]))
    return found


@step(outputs=("conditions",), name="encode_image_prompt")
def encode_sd3_image(
    tools: Tools,
    conditions: Mapping[str, Mapping[str, Array]],
    ip_adapter_image: Any = None,
    ip_adapter_image_embeds: Any = None,
) -> State:
    """Add an image's states and the scales to each condition; those of no image are zeros.

    Raises:
        InputError: there is an image and no adapter, an adapter and no image, or they do not fit.
    """
    given = {
        "ip_adapter_image": ip_adapter_image,
        "ip_adapter_image_embeds": ip_adapter_image_embeds,
    }
    if not check_given(tools, given):
        return {"conditions": conditions}
    taken = tools.spec.denoiser.signature.input("ip_states_0")
    assert taken is not None
    width, absent = int(taken.shape[-1]), conditions.keys() != {"positive"}
    if ip_adapter_image_embeds is not None:
        (one,) = for_each(ip_adapter_image_embeds, 1, "ip_adapter_image_embeds")
        takes = f"the adapter takes [{'2' if absent else '1'}, states, width]"
        states = _array(one, "ip_adapter_image_embeds", takes)
        if absent and len(states) % 2:
            raise InputError(
                f"ip_adapter_image_embeds has an array of shape {states.shape}; {takes}, those of no "
                "image first."
            )
        nothing, real = np.split(states, 2) if absent else (np.zeros_like(states), states)
        check_width("the adapter", real, width, "ip_adapter_image_embeds")
    else:
        real = looked_at(tools, made_ready(tools, ip_adapter_image), "penultimate_hidden_state")
        nothing = np.zeros_like(real)
        check_width("the adapter", real, width, "the image encoder")
    added = {}
    for name, arrays in conditions.items():
        seen = real if name == "positive" else nothing
        states = repeated(seen, len(next(iter(arrays.values()))))
        added[name] = {**arrays, "ip_states_0": states, **_scales(tools)}
    return {"conditions": added}
