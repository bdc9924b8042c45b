"""Image to image that keeps the depth of a picture (Stable Diffusion 2 depth)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from perfuse.arrays import to_numpy
from perfuse.arrays.resize import bicubic
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.image_to_image import IMAGE_TO_IMAGE
from perfuse.tasks.pictures import added_channels, for_batch, with_channels

__all__ = ["DEPTH_TO_IMAGE"]


@step(outputs=())
def check_model(tools: Tools) -> State:
    """Refuse a denoiser that does not take one channel of depth."""
    more = added_channels(tools)
    if more != 1:
        raise InputError(
            f"Depth to image was asked for; this denoiser takes {more} channels besides the latents', "
            "and a model made for it takes 1. Use such a model."
        )
    return {}


@step(outputs=("conditions",))
def add_depth(
    tools: Tools,
    conditions: Mapping[str, Mapping[str, Array]],
    depth_map: Array | None,
    height: int,
    width: int,
    count: int,
    num_images_per_prompt: int,
) -> State:
    """The conditions with the depth [pictures, 1, h, w], from -1 for the farthest to 1."""
    depth: Any = to_numpy(depth_map)
    if depth.ndim != 3:
        raise InputError(f"depth_map must be an array [batch, height, width]; got {depth.shape}.")
    scale = tools.spec.latents.downscale
    depth = bicubic(depth[:, None].astype("float32"), height // scale, width // scale)
    low, high = (edge(axis=(1, 2, 3), keepdims=True) for edge in (depth.min, depth.max))
    if not (high > low).all():
        raise InputError("depth_map is the same everywhere. Give one with near and far places.")
    depth = 2.0 * (depth - low) / (high - low) - 1.0
    batch = count * num_images_per_prompt
    return {"conditions": with_channels(conditions, for_batch(depth, batch, "depth maps"))}


def _with_depth(task: Task) -> Task:
    more = {"depth_map": Input(help="The depth [B, H, W] of the picture, larger where nearer.")}
    changed = dataclasses.replace(
        task, name="depth-to-image", inputs={**task.inputs, **more}
    ).replace("check_model", check_model)
    return changed.insert(add_depth, after="encode_prompt")


DEPTH_TO_IMAGE = _with_depth(IMAGE_TO_IMAGE)
