"""Qwen 2.5 VL where it reads pictures, too: what its two components are, without torch.

Of a picture come states, one for four patches; the text encoder puts them where its tokens leave room.
Patches are in the order of the windows within which most layers attend: all of a window, and in it
four by four that become one state. Sizes are filled up to whole windows.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.errors import CheckpointError
from perfuse.models.language_model.description import describe_qwen2_5_vl, settings_of
from perfuse.models.language_model.description import host_inputs as text_inputs
from perfuse.models.positions import HIDDEN
from perfuse.models.shapes import floating

__all__ = [
    "DETAILS",
    "PICTURES",
    "Eyes",
    "Grid",
    "VisionSettings",
    "describe",
    "host_inputs",
    "picture_token",
    "read_sizes",
    "reading_pictures",
    "rotary_of_patches",
    "vision_of",
]

#: The text encoder's inputs of pictures' states, and of what Qwen 3 VL adds after its first layers.
PICTURES, DETAILS = "picture_states", "picture_details"
#: Tokens of prompts and pictures together: a picture of 1024×1024 pixels has 1369.
_LONGEST = 8192
_THETA = 10000.0


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """The sizes of a vision transformer."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    #: Patches of a side that become one state.
    merge: int
    #: Patches of a side of what comes one after the other: a window, or a state.
    window: int
    out_hidden_size: int

    @property
    def patch(self) -> int:
        """Numbers of a patch."""
        return self.in_channels * self.patch_size**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class VisionSettings(Eyes):
    """Eyes with windows (Bai et al. 2025, arXiv:2502.13923)."""

    #: The layers that attend to the whole picture.
    full: tuple[int, ...]


#: The defaults of Transformers, which leaves values at their default out of the file.
_DEFAULTS: Mapping[str, Any] = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
}
_FULL = (7, 15, 23, 31)


def read_sizes(
    config: Mapping[str, Any], usual: Mapping[str, int]
) -> tuple[Mapping[str, Any], dict[str, int]]:
    """The config of a checkpoint's eyes, and its sizes, by the names of the usual ones.

    Raises:
        CheckpointError: it has no eyes, or a size is no whole number of at least 1.
    """
    inner = config.get("vision_config")
    if not isinstance(inner, Mapping):
        raise CheckpointError(
            "A language model that reads pictures was asked for; this one has no vision_config. Use "
            "the text encoder of the pipeline's checkpoint."
        )
    try:
        return inner, {name: _size(inner.get(name, value)) for name, value in usual.items()}
    except ValueError as exc:
        raise CheckpointError(
            f"A vision_config holds {dict(inner)!r}, which cannot be used: {exc!r}."
        ) from exc


def vision_of(config: Mapping[str, Any]) -> VisionSettings:
    """The settings of a checkpoint's eyes.

    Raises:
        CheckpointError: it has none, or they are malformed.
    """
    inner, numbers = read_sizes(config, _DEFAULTS)
    patch, merge = numbers["patch_size"], numbers.pop("spatial_merge_size")
    try:
        window = numbers.pop("window_size") // merge // patch * merge
        full = tuple(int(one) for one in inner.get("fullatt_block_indexes", _FULL))
        if window < merge or numbers["hidden_size"] % (4 * numbers["num_heads"]):
            raise ValueError("a window smaller than a state, or heads of no multiple of 4 channels")
    except (TypeError, ValueError) as exc:
        raise CheckpointError(
            f"A vision_config holds {dict(inner)!r}, which cannot be used: {exc!r}."
        ) from exc
    if (act := inner.get("hidden_act", "silu")) != "silu":
        raise CheckpointError(f"A vision_config has the activation {act!r}; perfuse takes silu.")
    return VisionSettings(**numbers, merge=merge, window=window, full=full)


def picture_token(config: Mapping[str, Any]) -> int:
    """The token that stands for a state of a picture."""
    return int(config.get("image_token_id", 151655))


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"a size of {value!r}")
    return value


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """The text encoder, which also takes the states of pictures, and what makes these states."""
    (text,) = describe_qwen2_5_vl(name, folder, config)
    vision = vision_of(config)
    reading = reading_pictures(text, vision.out_hidden_size)
    width = text.signature.outputs[0].shape[-1]
    each, states = vision.window**2, vision.merge**2
    table = (2, "patches", vision.head_dim // 2)
    eyes = ComponentSpec(
        name=f"{name}_vision",
        role=Role.IMAGE_ENCODER,
        class_name=text.class_name,
        folder=folder,
        config=config,
        signature=Signature(
            inputs=(
                floating("patches", "batch", "patches", vision.patch),
                floating("patch_bias", "patches"),
                TensorSpec(name="rotary", dtype="float32", shape=table),
            ),
            outputs=(floating(PICTURES, "batch", f"patches/{states}", width),),
        ),
        dims={
            "batch": Dim(example=2),
            "patches": Dim(multiple=each, example=3, smallest=2),
        },
    )
    return reading, eyes


def reading_pictures(text: ComponentSpec, states: int, *more: TensorSpec) -> ComponentSpec:
    """A text encoder that also takes the states of pictures, and more.

    Args:
        text: The text encoder.
        states: The width of the states that the eyes give.
        more: Its inputs after the states.

    Raises:
        CheckpointError: these have another width than the text's, or the rotation knows no rows.
    """
    width = text.signature.outputs[0].shape[-1]
    if states != width:
        raise CheckpointError(
            f"The states of pictures have width {states}, those of text {width}. "
            "Download or save the checkpoint again."
        )
    model = settings_of(text)
    if (
        model.sections is None
        or 2 * sum(model.sections) != model.head_dim
        or len(model.sections) != 3
    ):
        raise CheckpointError(
            f"The rotation of {text.name} has mrope_section {model.sections}; three numbers that add "
            f"up to {model.head_dim // 2} were expected. Download or save the checkpoint again."
        )
    taken = (*text.signature.inputs, floating(PICTURES, "batch", "sequence", width), *more)
    longest = Dim(maximum=min(model.max_position_embeddings, _LONGEST), example=7, smallest=2)
    return dataclasses.replace(
        text,
        signature=dataclasses.replace(text.signature, inputs=taken),
        dims={**text.dims, "sequence": longest},
    )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The patches of a picture, in the order of windows.

    >>> grid = Grid(rows=2, columns=4, merge=2, window=2)
    >>> grid.places.tolist()[:5]
    [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]
    """

    rows: int
    columns: int
    merge: int
    window: int

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Row and column of each patch, [N, 2], those that fill up included."""
        high, wide = (-(-side // self.window) for side in (self.rows, self.columns))
        inner = self.window // self.merge
        sides = (high, inner, self.merge, wide, inner, self.merge)
        rows, columns = np.indices((high * self.window, wide * self.window)).reshape(2, *sides)
        order = (0, 3, 1, 4, 2, 5)  # windows, then states in them, then patches in these
        flat = [axis.transpose(order).ravel() for axis in (rows, columns)]
        return np.stack(flat, axis=1)

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """Which of them are the picture's, [N]."""
        return (self.places[:, 0] < self.rows) & (self.places[:, 1] < self.columns)

    @cached_property
    def states(self) -> NDArray[np.int64]:
        """Where each of the picture's states is among those of all windows, row by row."""
        first = np.arange(0, len(self.places), self.merge**2)
        first = first[self.seen[first]]
        rows, columns = (self.places[first] // self.merge).T
        order = np.argsort(rows * (self.columns // self.merge) + columns)
        return first[order] // self.merge**2


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """The rotation of each patch by its row and its column, and a bias that hides what fills up.

    Without ``rows`` and ``columns`` among the sizes, the windows are below each other. The text
    encoder's are those of every language model.
    """
    if spec.role != Role.IMAGE_ENCODER:
        return text_inputs(spec, sizes, guidance)
    if "patches" not in sizes:
        return {}
    vision = vision_of(spec.config)
    grid = Grid(
        rows=sizes.get("rows", sizes["patches"] // vision.window),
        columns=sizes.get("columns", vision.window),
        merge=vision.merge,
        window=vision.window,
    )
    return {
        "patch_bias": np.where(grid.seen, np.float32(0), HIDDEN),
        "rotary": rotary_of_patches(grid, vision.head_dim),
    }


def rotary_of_patches(grid: Grid, head_dim: int) -> Array:
    """The rotation of each patch by its row and its column, [2, N, D / 2]."""
    half = head_dim // 2
    pairs = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    frequencies = np.float32(1) / np.float32(_THETA) ** pairs  # float32: Transformers'
    angles = grid.places.astype(np.float32)[..., None] * frequencies
    angles = angles.reshape(len(angles), half)
    return np.stack([np.cos(angles), np.sin(angles)])
