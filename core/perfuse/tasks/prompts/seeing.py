"""Pictures as a language model with eyes reads them: a state for some of a picture's patches."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.spec import Array
from perfuse.contract.steps import Tools
from perfuse.errors import CheckpointError, InputError
from perfuse.models.language_model.deep_vision import deep_vision_of
from perfuse.models.language_model.kinds import KINDS
from perfuse.models.language_model.vision import DETAILS, PICTURES, Eyes, Grid, vision_of
from perfuse.models.registry import host_inputs

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SeenPicture", "check_shape", "see"]

#: Pixels of a picture, where ``preprocessor_config.json`` does not say.
_FEWEST, _MOST = 56**2, 28**2 * 1280
_NARROWEST = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenPicture:
    """What a language model is told of a picture."""

    #: [rows · columns, D], row by row.
    states: Array
    rows: int
    columns: int
    #: What is added after the model's first layers, [K, rows · columns, D]; of Qwen 3 VL alone.
    details: Array | None = None


def check_shape(image: "Image") -> None:
    """Refuse a picture that is a line.

    Raises:
        InputError: one of its sides is more than 200 times the other.
    """
    short, long = sorted(image.size)
    if long > _NARROWEST * short:
        raise InputError(
            f"A picture of {image.width}x{image.height} pixels was given; one side may be at most "
            f"{_NARROWEST} times the other."
        )


def see(tools: Tools, image: "Image", *, encoder: str = "text_encoder") -> SeenPicture:
    """The states of a picture, which is resized to a size that the model takes.

    Raises:
        CheckpointError: the settings of the pipeline's ``processor`` cannot be used.
    """
    from perfuse.arrays.image_processor import ImageProcessor

    spec = tools.spec.components[f"{encoder}_vision"]
    vision: Eyes
    deep = spec.class_name in KINDS["qwen3_vl"]
    vision = deep_vision_of(spec.config) if deep else vision_of(spec.config)
    said = {"do_center_crop": False, **tools.spec.processors["processor"]}
    size = _size_of(image, said, vision.patch_size * vision.merge)
    processor = dataclasses.replace(ImageProcessor.from_config(said), size=size)
    grid = Grid(
        rows=size[0] // vision.patch_size,
        columns=size[1] // vision.patch_size,
        merge=vision.merge,
        window=vision.window,
    )
    patches = _patches(processor(image).pixel_values[0], grid, vision)
    sizes = {
        "batch": 1,
        "patches": len(grid.places),
        "rows": grid.rows,
        "columns": grid.columns,
    }
    found = tools.program(spec.name)(patches=patches[None], **host_inputs(spec, sizes))
    (states,) = to_numpy(found[PICTURES])
    return SeenPicture(
        states=states[grid.states],
        rows=grid.rows // vision.merge,
        columns=grid.columns // vision.merge,
        details=to_numpy(found[DETAILS])[0][:, grid.states] if deep else None,
    )


def _size_of(image: "Image", config: Mapping[str, Any], each: int) -> tuple[int, int]:
    """Height and width in multiples of ``each``, with about the picture's shape."""
    height, width = image.height, image.width
    fewest, most = _bounds(config)
    sides = [round(side / each) * each for side in (height, width)]
    if sides[0] * sides[1] > most:
        scale = math.sqrt(height * width / most)
        sides = [max(1, math.floor(side / scale / each)) * each for side in (height, width)]
    elif sides[0] * sides[1] < fewest:
        scale = math.sqrt(fewest / (height * width))
        sides = [math.ceil(side * scale / each) * each for side in (height, width)]
    return sides[0], sides[1]


def _bounds(config: Mapping[str, Any]) -> tuple[int, int]:
    """The fewest and the most pixels, by today's names or by those of before."""
    size = config.get("size")
    named = size if isinstance(size, Mapping) else {}
    fewest = config.get("min_pixels", named.get("shortest_edge", _FEWEST))
    most = config.get("max_pixels", named.get("longest_edge", _MOST))
    if not (isinstance(fewest, int) and isinstance(most, int) and 0 < fewest <= most):
        raise CheckpointError(
            f"The processor of pictures takes from {fewest!r} to {most!r} pixels; whole numbers were "
            "expected, the first one smaller. Take its files from the checkpoint again."
        )
    return fewest, most


def _patches(pixels: Array, grid: Grid, vision: Eyes) -> Array:
    """A picture [C, H, W] as patches [N, numbers] in the order of windows; zeros fill up."""
    side = vision.patch_size
    cut = pixels.reshape(len(pixels), grid.rows, side, grid.columns, side)
    table = cut.transpose(1, 3, 0, 2, 4).reshape(grid.rows, grid.columns, vision.patch)
    found = np.zeros((len(grid.places), vision.patch), dtype=np.float32)
    rows, columns = grid.places[grid.seen].T
    found[grid.seen] = table[rows, columns]
    return found
