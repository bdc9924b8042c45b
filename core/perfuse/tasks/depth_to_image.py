"""Image to image that keeps the depth of a picture (Stable Diffusion 2 depth)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from perfuse.arrays import place, to_numpy
from perfuse.arrays.resize import bicubic
from perfuse.contract.spec import Array, Role
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.image_to_image import IMAGE_TO_IMAGE
from perfuse.tasks.pictures import added_channels, for_batch, is_latents, with_channels

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


@step(outputs=("depth_map",))
def estimate_depth(tools: Tools, image: Any, depth_map: Array | None) -> State:
    """The depth [pictures, H, W] that was given, or that the pipeline's estimator sees."""
    if depth_map is not None:
        return {"depth_map": depth_map}
    estimators, processors = tools.spec.having(Role.DEPTH_ESTIMATOR), tools.spec.processors
    if not estimators or "feature_extractor" not in processors:
        raise InputError(
            f"Depth to image was asked for without depth_map; {tools.spec.class_name} has no depth "
            "estimator here. Open it with its depth_estimator and its feature_extractor, or give "
            "depth_map, an array [batch, height, width]."
        )
    if is_latents(tools, image):
        raise InputError(
            "Latents were given as image, whose depth cannot be estimated. Give a picture, or "
            "depth_map besides."
        )
    from perfuse.arrays.image_processor import ImageProcessor

    program = tools.program(estimators[0].name)
    processor = ImageProcessor.from_config(processors["feature_extractor"])
    pixels = processor(_pictures(image)).pixel_values
    found = program(pixel_values=place(pixels, program.torch_device))["predicted_depth"]
    return {"depth_map": found}


def _pictures(image: Any) -> list[Any]:
    """One uint8 picture [H, W, 3] for each that was given, of its own size."""
    from perfuse.arrays.pictures import preprocess, to_pictures

    given = list(image) if isinstance(image, list | tuple) else [image]
    return [one for part in given for one in to_pictures(preprocess(part, multiple=1))]


@step(outputs=("conditions",))
def add_depth(
    tools: Tools,
    conditions: Mapping[str, Mapping[str, Array]],
    depth_map: Array,
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
    more = {
        "depth_map": Input(
            help="The depth [B, H, W] of the picture, larger where nearer, instead of an estimate."
        )
    }
    changed = dataclasses.replace(
        task, name="depth-to-image", inputs={**task.inputs, **more}
    ).replace("check_model", check_model)
    return changed.insert(estimate_depth, after="encode_prompt").insert(
        add_depth, after="estimate_depth"
    )


DEPTH_TO_IMAGE = _with_depth(IMAGE_TO_IMAGE)
