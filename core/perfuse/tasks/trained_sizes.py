"""Models that draw in the sizes of their training: the nearest is drawn, and resized afterwards."""

from typing import Any

import numpy as np

from perfuse.arrays import is_torch, place, to_numpy
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.tasks.denoise import pick_size

__all__ = ["BINNING", "resize", "trained_size"]

#: Heights and widths of the training in units of a sixteenth of a side.
_SHAPES = (
    "8x32 8x29 9x28 9x27 9x26 10x25 10x24 11x23 11x22 11x21 12x21 12x20 13x19 13x18 14x18 14x17 "
    "15x17 15x16 16x16 16x15 17x15 17x14 18x14 18x13 19x13 20x12 21x12 22x11 23x11 24x10 25x10 "
    "27x9 32x8"
)
#: The same of models for 2048 pixels and more.
_LARGE_SHAPES = (
    "8x32 8x31 8x30 8x29 9x28 9x27 9x26 10x25 10x24 11x23 11x22 11x21 12x21 12x20 13x19 13x18 14x18 "
    "14x17 15x17 15x16 16x16 16x15 17x15 17x14 18x14 18x13 19x13 20x12 21x12 22x11 23x11 24x10 25x10 "
    "26x9 27x9 28x9 29x8 30x8 31x8 32x8"
)
#: Side of the training in pixels to its shapes.
_SHAPES_OF = {
    256: _SHAPES,
    512: _SHAPES,
    1024: _SHAPES,
    2048: _LARGE_SHAPES,
    4096: _LARGE_SHAPES,
}

BINNING = Input(
    default=True, kind=bool, help="Draw in the nearest size of the training, then resize."
)


def trained_size(
    tools: Tools, height: int | None, width: int | None, *, binning: bool, downscale: int
) -> State:
    """The size of the training whose shape is nearest to what is asked for, and that itself.

    Args:
        tools: The pipeline.
        height: In pixels; the model's own if ``None``.
        width: In pixels.
        binning: Whether to draw in a size of the training.
        downscale: Pixels a latent in the training, by which its sizes are told.
    """
    asked = pick_size(tools, height, width)
    side = (tools.spec.denoiser.sample_size or (0, 0))[0] * downscale
    if not binning or side not in _SHAPES_OF:
        return {"height": asked[0], "width": asked[1], "asked_size": asked}
    shapes, unit = _SHAPES_OF[side], side // 16
    sizes = [tuple(int(n) * unit for n in text.split("x")) for text in shapes.split()]
    shape = asked[0] / asked[1]
    found = min(sizes, key=lambda size: abs(round(size[0] / size[1], 2) - shape))
    return {"height": found[0], "width": found[1], "asked_size": asked}


@step(outputs=("decoded",))
def resize(tools: Tools, decoded: Array, asked_size: tuple[int, int], output_type: str) -> State:
    """The pictures as large as was asked for: resized, and cropped in the middle."""
    height, width = asked_size
    if output_type == "latent" or tuple(decoded.shape[-2:]) == asked_size:
        return {"decoded": decoded}
    high, wide = decoded.shape[-2:]
    ratio = max(height / high, width / wide)
    size = int(high * ratio), int(wide * ratio)
    large = _interpolated(_interpolated(to_numpy(decoded), 2, size[0]), 3, size[1])
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cut = np.ascontiguousarray(large[:, :, top : top + height, left : left + width])
    return {"decoded": place(cut, decoded.device if is_torch(decoded) else None)}


def _interpolated(array: Any, axis: int, size: int) -> Any:
    """Bilinear interpolation along an axis, as torch's without ``align_corners``."""
    before = array.shape[axis]
    at = np.maximum((np.arange(size) + 0.5) * (before / size) - 0.5, 0.0)
    low = np.minimum(at.astype(np.int64), before - 1)
    high = np.minimum(low + 1, before - 1)
    share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
    return array.take(low, axis) * (1 - share) + array.take(high, axis) * share
