"""Masks of pictures: the region to draw anew, blurred edges, and what is put back around it.

A mask is white where a picture is drawn anew. Pillow is imported when it is first needed. The numbers
are those of Diffusers' ``VaeImageProcessor``.
"""

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from perfuse.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Box", "blurred", "covering", "crop_region", "filled", "overlaid"]

#: Left, top, right and bottom in pixels; the last two are not part of it.
Box: TypeAlias = tuple[int, int, int, int]


def blurred(mask: "Image", radius: float) -> "Image":
    """A mask with soft edges: a Gaussian blur of this radius in pixels."""
    from PIL import ImageFilter

    return mask.filter(ImageFilter.GaussianBlur(radius))


def crop_region(mask: "Image", width: int, height: int, pad: int = 0) -> Box:
    """The part of a picture to work on: around all that is masked, of the proportions asked for.

    Args:
        mask: The mask, as large as the picture.
        width: Of the picture that the model draws; only the proportion counts.
        height: Of the same.
        pad: Pixels to add on each side.

    Raises:
        InputError: nothing is masked.
    """
    masked = np.asarray(mask.convert("L")) != 0
    columns, rows = np.flatnonzero(masked.any(axis=0)), np.flatnonzero(masked.any(axis=1))
    if not len(columns):
        raise InputError(
            "padding_mask_crop was given; the mask is black. Paint in it what to draw."
        )
    left, right = max(int(columns[0]) - pad, 0), min(int(columns[-1]) + 1 + pad, mask.width)
    top, bottom = max(int(rows[0]) - pad, 0), min(int(rows[-1]) + 1 + pad, mask.height)
    if (right - left) / (bottom - top) > width / height:
        more = int((right - left) / (width / height) - (bottom - top))
        top, bottom = _widened(top, bottom, more, mask.height)
    else:
        more = int((bottom - top) * (width / height) - (right - left))
        left, right = _widened(left, right, more, mask.width)
    return left, top, right, bottom


def _widened(first: int, last: int, more: int, limit: int) -> tuple[int, int]:
    """A range with ``more`` added on both sides, moved to lie within 0 and ``limit``."""
    first, last = first - more // 2, last + more - more // 2
    if last >= limit:
        first, last = first - (last - limit), limit
    if first < 0:
        first, last = 0, last - first
    return first, min(last, limit)


def filled(image: "Image", width: int, height: int) -> "Image":
    """A picture that fits into a size, its first and last rows or columns repeated around it."""
    from PIL import Image
    from PIL.Image import Resampling

    wide = width / height < image.width / image.height
    inner_width = width if wide else image.width * height // image.height
    inner_height = image.height * width // image.width if wide else height
    inner = image.resize((inner_width, inner_height), resample=Resampling.LANCZOS)
    left, top = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    result = Image.new("RGB", (width, height))
    result.paste(inner, box=(left, top))
    if wide and top > 0:
        edge = inner.resize((width, top), box=(0, 0, width, 0))
        result.paste(edge, box=(0, 0))
        edge = inner.resize((width, top), box=(0, inner.height, width, inner.height))
        result.paste(edge, box=(0, top + inner_height))
    elif not wide and left > 0:
        edge = inner.resize((left, height), box=(0, 0, 0, height))
        result.paste(edge, box=(0, 0))
        edge = inner.resize((left, height), box=(inner.width, 0, inner.width, height))
        result.paste(edge, box=(left + inner_width, 0))
    return result


def overlaid(mask: "Image", original: "Image", drawn: "Image", box: Box | None) -> "Image":
    """The original picture with what was drawn where the mask is white.

    Args:
        mask: The mask, as large as the original.
        original: The picture before.
        drawn: What the model drew: the whole picture, or the part of it in ``box``.
        box: The part that the model worked on; ``None`` for all.
    """
    from PIL import Image, ImageOps

    kept = Image.new("RGBa", original.size)
    hidden = ImageOps.invert(mask.convert("L"))
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=hidden)
    if box is not None:
        base = Image.new("RGBA", original.size)
        base.paste(covering(drawn, box[2] - box[0], box[3] - box[1]), box[:2])
        drawn = base.convert("RGB")
    result = drawn.convert("RGBA")
    result.alpha_composite(kept.convert("RGBA"))
    return result.convert("RGB")


def covering(image: "Image", width: int, height: int) -> "Image":
    """A picture resized to cover a size, and cut to it."""
    from PIL import Image
    from PIL.Image import Resampling

    wide = width / height > image.width / image.height
    inner_width = width if wide else image.width * height // image.height
    inner_height = image.height * width // image.width if wide else height
    inner = image.resize((inner_width, inner_height), resample=Resampling.LANCZOS)
    result = Image.new("RGB", (width, height))
    result.paste(inner, box=(width // 2 - inner_width // 2, height // 2 - inner_height // 2))
    return result
