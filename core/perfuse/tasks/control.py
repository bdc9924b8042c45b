"""What tasks with pictures to follow share: which nets there are, and a picture for each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from perfuse.arrays import is_torch, to_numpy
from perfuse.arrays.pictures import preprocess_unit
from perfuse.contract.spec import ComponentSpec
from perfuse.contract.steps import State, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.guiders.numbers import check_number
from perfuse.tasks.text import repeat

__all__ = ["cropped", "one_each", "pictures_for", "read_scales", "size_from_control", "take_image"]


@step(outputs=("control_image",))
def take_image(tools: Tools, image: Any) -> State:
    """In text to image, ``image`` is the picture to follow, as in Diffusers."""
    return {"control_image": image}


@step(outputs=("height", "width"))
def size_from_control(
    tools: Tools, control_image: Any, height: int | None, width: int | None
) -> State:
    """The size of the picture to follow, rounded down, where no other size is asked for."""
    first = control_image
    while isinstance(first, list | tuple) and first:
        first = first[0]
    tall, wide = _size_of(first)
    multiple = tools.spec.size_multiple
    return {
        "height": max(tall // multiple, 1) * multiple if height is None else height,
        "width": max(wide // multiple, 1) * multiple if width is None else width,
    }


def _size_of(picture: Any) -> tuple[int, int]:
    """Height and width of a PIL image, an array HW, HWC or NHWC, or a tensor CHW or NCHW."""
    if is_torch(picture):
        return int(picture.shape[-2]), int(picture.shape[-1])
    shape = tuple(getattr(picture, "shape", ()))
    if len(shape) in (2, 3, 4):
        return shape[-3:-1] if len(shape) > 2 else shape
    if hasattr(picture, "height"):
        return int(picture.height), int(picture.width)
    raise InputError(
        f"A picture to follow was expected; got {picture!r}. Give a PIL image, an array [H, W, C] "
        "or [N, H, W, C] with values from 0 to 1, or a list of them."
    )


def one_each(given: Any, nets: Sequence[ComponentSpec], name: str) -> list[Any]:
    """What is given for each net: a list of as many, or one value for all.

    Raises:
        InputError: there are more or fewer than nets.
    """
    values = list(given) if isinstance(given, list | tuple) else [given] * len(nets)
    if len(values) != len(nets):
        raise InputError(
            f"{name} has {len(values)} values; this pipeline has {_named(nets)}. Give one for all, "
            "or a list of one for each."
        )
    return values


def read_scales(given: Any, nets: Sequence[ComponentSpec], name: str) -> list[float]:
    """A finite number for each net."""
    return [check_number(name, value) for value in one_each(given, nets, name)]


def pictures_for(
    given: Any,
    nets: Sequence[ComponentSpec],
    *,
    prompts: int,
    times: int,
    size: tuple[int, int],
) -> list[np.ndarray]:
    """The pictures of each net, float32 [prompts * times, C, H, W] in [0, 1].

    Args:
        given: A picture; with several nets a list of one for each. A list in place of a picture
            holds one for each prompt; a list of lists holds, as in Diffusers, for each prompt a
            list of a picture for each net.
        nets: The nets.
        prompts: How many prompts there are.
        times: Pictures for each prompt.
        size: Height and width in pixels.

    Raises:
        InputError: there are other than as many pictures as nets, or as prompts.
    """
    if given is None:
        raise InputError(f"No picture was given; {_named(nets)} needs one to follow.")
    each = [given]
    if len(nets) > 1:
        each = list(given) if isinstance(given, list | tuple) else [given]
        if any(isinstance(one, list | tuple) for one in each):
            each = [list(one) for one in zip(*each, strict=False)]
    if len(each) != len(nets):
        raise InputError(
            f"{len(each)} pictures to follow were given; this pipeline has {_named(nets)}. Give a "
            "list of one for each."
        )
    return [
        _repeated(_read(one, net, size), net, prompts, times)
        for one, net in zip(each, nets, strict=True)
    ]


def cropped(given: Any, box: Any, size: tuple[int, int]) -> Any:
    """A PIL picture, or each of a list, cropped to a part of it; anything else as it is."""
    from perfuse.arrays.masks import filled

    if isinstance(given, list | tuple):
        return [cropped(one, box, size) for one in given]
    return filled(given.crop(box), size[1], size[0]) if hasattr(given, "crop") else given


def _named(nets: Sequence[ComponentSpec]) -> str:
    return ", ".join(net.name for net in nets)


def _read(given: Any, net: ComponentSpec, size: tuple[int, int]) -> np.ndarray:
    taken = net.signature.input("control_image")
    assert taken is not None  # every component of this role reads a picture
    channels = taken.shape[-3]
    assert isinstance(channels, int)
    several = list(given) if isinstance(given, list | tuple) else [given]
    images = [_last(one) for one in several]
    array = preprocess_unit(images, *size, multiple=1, channels=channels)
    if array.shape[1] != channels:
        raise InputError(
            f"The picture to follow has {array.shape[1]} channels; {net.name} takes {channels}."
        )
    return array


def _last(picture: Any) -> Any:
    """A picture with its channels last, where it is a tensor."""
    if not is_torch(picture):
        return picture
    return np.moveaxis(to_numpy(picture), -3, -1)


def _repeated(array: np.ndarray, net: ComponentSpec, prompts: int, times: int) -> np.ndarray:
    if len(array) not in (1, prompts):
        raise InputError(
            f"{len(array)} pictures were given for {net.name} and {prompts} prompts. Give one for "
            "all, or one for each."
        )
    repeated: np.ndarray = repeat(array, prompts * times if len(array) == 1 else times)
    return repeated
