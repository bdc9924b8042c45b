"""Image to image with Stable Diffusion XL and its refiner (Podell et al. 2023, arXiv:2307.01952)."""

import dataclasses

from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.tasks.image_to_image import from_picture
from perfuse.tasks.inpainting import inpainting_of
from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL, Size, ids_of

__all__ = ["IMAGE_TO_IMAGE_XL", "INPAINTING_XL"]


@step(outputs=("time_ids",))
def read_sizes(
    tools: Tools,
    height: int,
    width: int,
    original_size: Size,
    crops_coords_top_left: tuple[int, int],
    target_size: Size,
    negative_original_size: Size,
    negative_crops_coords_top_left: tuple[int, int],
    negative_target_size: Size,
    aesthetic_score: float,
    negative_aesthetic_score: float,
) -> State:
    """SDXL's time ids by condition, float32 [1, 6], or [1, 5] for a refiner.

    The last of a refiner's is the aesthetic score, where others have the target size.
    """
    original, target = original_size or (height, width), target_size or (height, width)
    other_original, other_target = (
        negative_original_size or original,
        negative_target_size or target,
    )
    top_left, other_top_left = crops_coords_top_left, negative_crops_coords_top_left
    if _is_refiner(tools):
        positive = (*original, *top_left, aesthetic_score)
        negative = (*other_original, *other_top_left, negative_aesthetic_score)
        return {"time_ids": ids_of(positive, negative)}
    # Diffusers uses the positive crop in both conditions.
    return {
        "time_ids": ids_of(
            (*original, *top_left, *target), (*other_original, *top_left, *other_target)
        )
    }


def _is_refiner(tools: Tools) -> bool:
    ids = tools.spec.denoiser.signature.input("time_ids")
    return ids is not None and ids.shape[-1] == 5


_MORE = {
    "denoising_start": Input(
        kind=float,
        help="Go on from latents that another model has left at this share of the noise.",
    ),
    "aesthetic_score": Input(
        default=6.0, kind=float, help="A refiner's condition: how beautiful, 1 to 10."
    ),
    "negative_aesthetic_score": Input(
        default=2.5, kind=float, help="The same for the negative condition."
    ),
}


def _with_scores(task: Task) -> Task:
    task = dataclasses.replace(task, inputs={**task.inputs, **_MORE})
    return task.replace("read_sizes", read_sizes)


IMAGE_TO_IMAGE_XL = _with_scores(from_picture(TEXT_TO_IMAGE_XL, "image-to-image")).with_defaults(
    {"strength": 0.3}
)
INPAINTING_XL = _with_scores(inpainting_of(TEXT_TO_IMAGE_XL, 0.9999)).with_defaults(
    {"guidance_scale": 7.5}
)
