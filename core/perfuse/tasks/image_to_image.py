"""Image to image with Stable Diffusion (Meng et al. 2021, arXiv:2108.01073): noise, then denoise."""

from perfuse.contract.steps import Input, Task
from perfuse.tasks.pictures import IMAGE, STRENGTH, prepare_from_picture, read_image
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE

__all__ = ["IMAGE_TO_IMAGE", "from_picture"]


_LATENTS = {
    "latents": Input(
        help="Latents [B, C, h, w] with the noise of the first step, instead of the picture's."
    ),
}


def from_picture(task: Task, name: str) -> Task:
    """A text-to-image task that starts from a picture instead of noise; the picture gives the size."""
    others = dict(task.inputs)
    prompt = others.pop("prompt")
    for unused in ("height", "width"):
        others.pop(unused)
    others |= _LATENTS
    changed = {"check_size": read_image, "prepare_latents": prepare_from_picture}
    return Task(
        name=name,
        inputs={"prompt": prompt, **IMAGE, **STRENGTH, **others},
        steps=tuple(changed.get(node.name, node) for node in task.steps),
    )


IMAGE_TO_IMAGE = from_picture(TEXT_TO_IMAGE, "image-to-image")
