"""Qwen 3 VL where it reads pictures, too: what its two components are, without torch.

Of a picture come states, one for four patches, which the text encoder puts where its tokens leave room;
and details, states of earlier layers of the eyes, which are added there after the text encoder's first
layers (DeepStack, Meng et al. 2024, arXiv:2406.04334).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.errors import CheckpointError
from perfuse.models.language_model.description import describe_qwen3_vl
from perfuse.models.language_model.description import host_inputs as text_inputs
from perfuse.models.language_model.vision import (
    DETAILS,
    PICTURES,
    Eyes,
    Grid,
    read_sizes,
    reading_pictures,
    rotary_of_patches,
)
from perfuse.models.shapes import floating

__all__ = ["DeepVisionSettings", "deep_vision_of", "describe", "host_inputs"]


@dataclass(frozen=True, kw_only=True)
class DeepVisionSettings(Eyes):
    """Eyes whose layers all attend to the whole picture (arXiv:2511.21631)."""

    #: Places that have a learned vector, in rows and columns of equal length.
    num_position_embeddings: int
    #: The layers after which a picture's details are taken.
    deep: tuple[int, ...]

    @property
    def side(self) -> int:
        """Rows of learned vectors."""
        return math.isqrt(self.num_position_embeddings)


#: The defaults of Transformers, which leaves values at their default out of the file.
_DEFAULTS: Mapping[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}
_DEEP, _ACT = (8, 16, 24), "gelu_pytorch_tanh"


def deep_vision_of(config: Mapping[str, Any]) -> DeepVisionSettings:
    """The settings of a checkpoint's eyes.

    Raises:
        CheckpointError: it has none, or they are malformed.
    """
    inner, numbers = read_sizes(config, _DEFAULTS)
    act = inner.get("hidden_act", _ACT)
    try:
        deep = tuple(int(one) for one in inner.get("deepstack_visual_indexes", _DEEP))
        merge = numbers.pop("spatial_merge_size")
        found = DeepVisionSettings(merge=merge, window=merge, deep=deep, **numbers)
        if not all(0 <= one < found.depth for one in deep) or sorted(set(deep)) != list(deep):
            raise ValueError(f"details of the layers {deep}, of {found.depth}")
        if found.side**2 != found.num_position_embeddings or found.hidden_size % (
            4 * found.num_heads
        ):
            raise ValueError("places that are no square, or heads of no multiple of 4 channels")
    except (TypeError, ValueError) as exc:
        raise CheckpointError(
            f"A vision_config holds {dict(inner)!r}, which cannot be used: {exc!r}."
        ) from exc
    if act != _ACT:
        raise CheckpointError(f"A vision_config has the activation {act!r}; perfuse takes {_ACT}.")
    return found


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """The text encoder, which also takes pictures' states and details, and what makes these."""
    (text,) = describe_qwen3_vl(name, folder, config)
    vision = deep_vision_of(config)
    width, layers = text.signature.outputs[0].shape[-1], len(vision.deep)
    reading = reading_pictures(
        text,
        vision.out_hidden_size,
        floating(DETAILS, "batch", layers, "sequence", width),
    )
    states = f"patches/{vision.merge**2}"
    eyes = ComponentSpec(
        name=f"{name}_vision",
        role=Role.IMAGE_ENCODER,
        class_name=text.class_name,
        folder=folder,
        config=config,
        signature=Signature(
            inputs=(
                floating("patches", "batch", "patches", vision.patch),
                TensorSpec(name="places", dtype="int64", shape=("patches", 4)),
                floating("shares", "patches", 4),
                TensorSpec(
                    name="rotary", dtype="float32", shape=(2, "patches", vision.head_dim // 2)
                ),
            ),
            outputs=(
                floating(PICTURES, "batch", states, width),
                floating(DETAILS, "batch", layers, states, width),
            ),
        ),
        dims={
            "batch": Dim(example=2),
            "patches": Dim(multiple=vision.merge**2, example=6, smallest=2),
        },
    )
    return reading, eyes


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """The rotation of each patch by its row and its column; and the four learned vectors around its
    place with their shares, because a picture may have more or fewer rows than there are vectors.

    Without ``rows`` and ``columns`` among the sizes, the states are below each other. The text
    encoder's are those of every language model.
    """
    if spec.role != Role.IMAGE_ENCODER:
        return text_inputs(spec, sizes, guidance)
    if "patches" not in sizes:
        return {}
    vision = deep_vision_of(spec.config)
    grid = Grid(
        rows=sizes.get("rows", sizes["patches"] // vision.merge),
        columns=sizes.get("columns", vision.merge),
        merge=vision.merge,
        window=vision.merge,
    )
    places, shares = _around(grid, vision.side)
    rotary = rotary_of_patches(grid, vision.head_dim)
    return {"places": places, "shares": shares, "rotary": rotary}


def _around(grid: Grid, side: int) -> tuple[Array, Array]:
    """The numbers of the learned vectors around each patch, [N, 4], and how much each counts.

    The first and the last patches of a row have the places of the first and the last vectors.
    """
    sizes = np.array([grid.rows, grid.columns])
    exact = grid.places.astype(np.float32) * (side - 1) / np.maximum(sizes - 1, 1)
    exact = exact.astype(np.float32)
    low = np.floor(exact)
    high = np.minimum(low + 1, side - 1)
    beyond = exact - low
    rows = np.stack([low[:, 0], low[:, 0], high[:, 0], high[:, 0]], axis=1)
    columns = np.stack([low[:, 1], high[:, 1], low[:, 1], high[:, 1]], axis=1)
    down, right = beyond.T
    shares = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    places = (rows * side + columns).astype(np.int64)
    return places, np.stack(shares, axis=1).astype(np.float32)
