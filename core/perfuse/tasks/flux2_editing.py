"""Editing with FLUX.2 klein: the tokens of pictures follow those of the picture that is drawn."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perfuse.arrays import to_numpy
from perfuse.contract.spec import Array
from perfuse.contract.steps import REQUIRED, Input, Picture, State, Tools, step
from perfuse.tasks.denoise import REFERENCE, pick_size
from perfuse.tasks.flux2 import FLUX2_TEXT_TO_IMAGE
from perfuse.tasks.pictures import for_batch, is_latents, moments_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FLUX2_EDITING"]

#: The most pixels that are read of a picture.
_MOST = 1024**2


@step(outputs=("pictures", "height", "width"), name="check_size")
def read_pictures(tools: Tools, image: Any, height: int | None, width: int | None) -> State:
    """The pictures to edit, each [1, 3, H, W] in [-1, 1]; the first gives the size drawn."""
    from perfuse.arrays.pictures import as_image, preprocess

    each = tools.spec.size_multiple
    given = list(image) if isinstance(image, list | tuple) else [image]
    pictures = [
        to_numpy(one)
        if is_latents(tools, one)
        else preprocess(_cropped(_bounded(as_image(one)), each), multiple=each)
        for one in given
    ]
    high, wide = pictures[0].shape[-2:]
    scale = tools.spec.latents.downscale if is_latents(tools, pictures[0]) else 1
    size = pick_size(
        tools,
        high * scale if height is None else height,
        wide * scale if width is None else width,
    )
    return {"pictures": pictures, "height": size[0], "width": size[1]}


def _bounded(image: "Image") -> "Image":
    """A picture of no more pixels than are read, of nearly the same shape."""
    from PIL import Image

    wide, high = image.size
    if wide * high <= _MOST:
        return image
    scale = (_MOST / (wide * high)) ** 0.5
    return image.resize((int(wide * scale), int(high * scale)), Image.Resampling.LANCZOS)


def _cropped(image: "Image", each: int) -> "Image":
    """The middle of a picture, whose sides are rounded down to multiples."""
    wide, high = (max(side // each, 1) * each for side in image.size)
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.convert("RGB").crop((left, top, left + wide, top + high))


@step(outputs=("conditions",))
def add_pictures(
    tools: Tools,
    conditions: Mapping[str, Mapping[str, Array]],
    pictures: list[Array],
    count: int,
    num_images_per_prompt: int,
) -> State:
    """The conditions with the latents of the pictures to edit."""
    more = {}
    for i, picture in enumerate(pictures):
        latents = picture
        if not is_latents(tools, picture):
            latents = tools.spec.latents.encode(moments_of(tools, picture)[0])
        more[f"{REFERENCE}{i}"] = for_batch(latents, count * num_images_per_prompt, "images")
    return {"conditions": {name: {**arrays, **more} for name, arrays in conditions.items()}}


FLUX2_EDITING = (
    replace(FLUX2_TEXT_TO_IMAGE, name="image-editing")
    .with_inputs(
        image=Input(
            default=REQUIRED,
            kind=Picture,
            option="--image",
            help="The picture to edit, or several.",
        )
    )
    .replace("check_size", read_pictures)
    .insert(add_pictures, after="encode_prompt")
)
