"""Editing with FLUX.1 Kontext (Black Forest Labs 2025, arXiv:2506.15742).

The tokens of the picture to edit follow those of the picture that is drawn, one further on the first
axis of the positions.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perfuse.arrays import to_numpy
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, Picture, State, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.denoise import REFERENCE, pick_size
from perfuse.tasks.flux import FLUX_TEXT_TO_IMAGE
from perfuse.tasks.pictures import for_batch, is_latents, moments_of

__all__ = ["FLUX_KONTEXT"]

#: The widths and heights that the model was trained with.
_TRAINED = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)


@step(outputs=("height", "width"), name="check_size")
def size_of_area(tools: Tools, height: int | None, width: int | None, max_area: int) -> State:
    """A size of ``max_area`` pixels, of the shape that is asked for, as Diffusers chooses it."""
    if isinstance(max_area, bool) or not isinstance(max_area, int) or max_area < 1:
        raise InputError(f"max_area must be a number of pixels; got {max_area!r}.")
    usual, each = tools.spec.default_size, tools.spec.size_multiple
    high = usual[0] if height is None else height
    wide = usual[1] if width is None else width
    sides = (max_area * high / wide) ** 0.5, (max_area * wide / high) ** 0.5
    rounded = [round(side) // each * each for side in sides]
    size = pick_size(tools, rounded[0], rounded[1])
    return {"height": size[0], "width": size[1]}


@step(outputs=("conditions",))
def add_picture(
    tools: Tools,
    conditions: Mapping[str, Mapping[str, Array]],
    image: Any,
    count: int,
    num_images_per_prompt: int,
    _auto_resize: bool,
) -> State:
    """The conditions with the latents of the picture to edit; unchanged without one."""
    if image is None:
        return {"conditions": conditions}
    latents = to_numpy(image) if is_latents(tools, image) else _encoded(tools, image, _auto_resize)
    latents = for_batch(latents, count * num_images_per_prompt, "images")
    more = {f"{REFERENCE}0": latents}
    return {"conditions": {name: {**arrays, **more} for name, arrays in conditions.items()}}


def _encoded(tools: Tools, image: Any, resizes: bool) -> Array:
    """The means of the latents of a picture, resized to the nearest size of the training."""
    from perfuse.arrays.pictures import preprocess

    each = tools.spec.size_multiple
    picture = preprocess(image, multiple=each)
    if resizes:
        shape = picture.shape[-1] / picture.shape[-2]
        _, wide, high = min((abs(shape - w / h), w, h) for w, h in _TRAINED)
        picture = preprocess(image, high // each * each, wide // each * each, multiple=each)
    mean, _ = moments_of(tools, picture)
    return tools.spec.latents.encode(mean)


FLUX_KONTEXT = (
    replace(FLUX_TEXT_TO_IMAGE, name="image-editing")
    .with_inputs(
        image=Input(kind=Picture, option="--image", help="The picture to edit."),
        max_area=Input(default=1024**2, kind=int, help="Pixels of the picture that is drawn."),
        _auto_resize=Input(
            default=True, kind=bool, help="Make the picture as large as those of the training."
        ),
    )
    .replace("check_size", size_of_area)
    .insert(add_picture, after="encode_prompt")
)
