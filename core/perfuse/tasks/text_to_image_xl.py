"""What Stable Diffusion XL does otherwise (Podell et al. 2023, arXiv:2307.01952).

Two text encoders, of which the states before the last layer are taken and joined; the pooled text of
the second; and the sizes that the picture is said to have had, which the UNet was trained with.
"""

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from perfuse.arrays.operations import concatenate, join_features, place, zeros_like
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.guidance import Guidance
from perfuse.tasks.steps import State, Step, Tools
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE, Prompt, encode, read_texts, repeat

__all__ = ["TEXT_TO_IMAGE_XL"]

Size = tuple[int, int] | None


def _encode_both(tools: Tools, texts: list[str], texts_2: list[str]) -> tuple[Array, Array]:
    """States [B, S, D1 + D2] and pooled text [B, P]. The refiner has the second encoder alone."""
    parts = []
    if "text_encoder" in tools.spec.components:
        parts.append(encode(tools, "text_encoder", "tokenizer", texts)["penultimate_hidden_state"])
    second = encode(tools, "text_encoder_2", "tokenizer_2", texts_2)
    parts.append(second["penultimate_hidden_state"])
    return join_features(parts), second["text_embeds"]


def _second(given: Prompt, name: str, first: list[str]) -> list[str]:
    if given is None:
        return first
    texts = read_texts(given, name)
    if len(texts) not in (1, len(first)):
        raise InputError(f"{name} has {len(texts)} texts for {len(first)} prompts; give as many.")
    return texts * (len(first) if len(texts) == 1 else 1)


def _check_pair(name: str, pair: Size) -> None:
    """Raise ``InputError`` for what is neither absent nor two whole numbers."""
    fits = isinstance(pair, list | tuple) and len(pair) == 2
    if pair is not None and not (fits and all(isinstance(size, int) for size in pair)):
        raise InputError(f"{name} must be two whole numbers, height first; got {pair!r}.")


def _encode_prompt_xl(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_2: Prompt,
    negative_prompt_2: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    pooled_prompt_embeds: Array | None,
    negative_pooled_prompt_embeds: Array | None,
    num_images_per_prompt: int,
    guidance: Guidance,
    height: int,
    width: int,
    original_size: Size,
    crops_coords_top_left: tuple[int, int],
    target_size: Size,
) -> State:
    """Text states, pooled text and sizes, [branches * pictures, …], without the prompt first."""
    _check_pair("original_size", original_size)
    _check_pair("crops_coords_top_left", crops_coords_top_left)
    _check_pair("target_size", target_size)
    if (prompt_embeds is None) != (pooled_prompt_embeds is None):
        raise InputError("Give prompt_embeds and pooled_prompt_embeds together.")
    if (negative_prompt_embeds is None) != (negative_pooled_prompt_embeds is None):
        raise InputError("Give negative_prompt_embeds and negative_pooled_prompt_embeds together.")
    if prompt_embeds is not None:
        states, pooled = prompt_embeds, pooled_prompt_embeds
    else:
        states, pooled = _encode_both(tools, prompts, _second(prompt_2, "prompt_2", prompts))
    rows = [(states, pooled)]
    if guidance.branches > 1:
        if negative_prompt_embeds is not None:
            rows.insert(0, (negative_prompt_embeds, negative_pooled_prompt_embeds))
        elif not negatives and tools.spec.options.get("force_zeros_for_empty_prompt", True):
            rows.insert(0, (zeros_like(states), zeros_like(pooled)))
        else:
            texts = negatives or [""] * count
            both = _encode_both(
                tools, texts, _second(negative_prompt_2, "negative_prompt_2", texts)
            )
            rows.insert(0, both)
    where = getattr(states, "device", None) if not isinstance(states, np.ndarray) else None

    def stack(column: int) -> Array:
        return concatenate(
            [repeat(place(row[column], where), num_images_per_prompt) for row in rows]
        )

    sizes: Sequence[int] = (
        *(original_size or (height, width)),
        *crops_coords_top_left,
        *(target_size or (height, width)),
    )
    batch = guidance.branches * count * num_images_per_prompt
    time_ids = np.tile(np.asarray(sizes, dtype=np.float32), (batch, 1))
    return {
        "conditions": {
            "encoder_hidden_states": stack(0),
            "text_embeds": stack(1),
            "time_ids": time_ids,
        }
    }


_EXTRA: dict[str, Any] = {
    "prompt_2": None,
    "negative_prompt_2": None,
    "pooled_prompt_embeds": None,
    "negative_pooled_prompt_embeds": None,
    "original_size": None,
    "crops_coords_top_left": (0, 0),
    "target_size": None,
}

TEXT_TO_IMAGE_XL = dataclasses.replace(
    TEXT_TO_IMAGE,
    inputs=MappingProxyType({**TEXT_TO_IMAGE.inputs, "guidance_scale": 5.0, **_EXTRA}),
).replace(
    "encode_prompt",
    Step(
        name="encode_prompt",
        inputs=(
            "prompts",
            "negatives",
            "count",
            "prompt_2",
            "negative_prompt_2",
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
            "num_images_per_prompt",
            "guidance",
            "height",
            "width",
            "original_size",
            "crops_coords_top_left",
            "target_size",
        ),
        outputs=("conditions",),
        run=_encode_prompt_xl,
    ),
)
