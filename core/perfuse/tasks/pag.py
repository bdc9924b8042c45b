"""Tasks with perturbed-attention guidance by default (Ahn et al. 2024, arXiv:2403.17377).

They are the tasks of Diffusers' PAG pipelines: ``PAGGuidance`` with their arguments.
"""

import dataclasses
from typing import Any

from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.tasks.guiders.pag import PAGGuidance
from perfuse.tasks.image_to_image import IMAGE_TO_IMAGE
from perfuse.tasks.image_to_image_xl import IMAGE_TO_IMAGE_XL, INPAINTING_XL
from perfuse.tasks.inpainting import INPAINTING
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE
from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL

__all__ = [
    "IMAGE_TO_IMAGE_PAG",
    "IMAGE_TO_IMAGE_XL_PAG",
    "INPAINTING_PAG",
    "INPAINTING_XL_PAG",
    "TEXT_TO_IMAGE_PAG",
    "TEXT_TO_IMAGE_XL_PAG",
]


@step(outputs=("guider",))
def choose_pag(
    tools: Tools,
    guider: Any,
    guidance_scale: float,
    guidance_rescale: float,
    pag_scale: float,
    pag_adaptive_scale: float,
    pag_applied_layers: str | tuple[str, ...] | None,
) -> State:
    """The guider given, or perturbed-attention guidance with these settings."""
    if guider is not None:
        return {"guider": guider}
    if pag_applied_layers is None:  # from_pretrained(pag_applied_layers=), as in Diffusers
        pag_applied_layers = tools.spec.options.get("pag_applied_layers", "mid")
    return {
        "guider": PAGGuidance(
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            pag_scale=pag_scale,
            pag_adaptive_scale=pag_adaptive_scale,
            pag_applied_layers=pag_applied_layers,
        )
    }


_MORE = {
    "pag_scale": Input(default=3.0, kind=float, help="Scale of perturbed-attention guidance."),
    "pag_adaptive_scale": Input(
        default=0.0, kind=float, help="How much that falls with each of 1000 timesteps."
    ),
    "pag_applied_layers": Input(
        help="Layers to perturb, by parts of their names: mid+up_blocks.0; by default mid."
    ),
}


def _with_pag(task: Task) -> Task:
    wider = dataclasses.replace(task, inputs={**task.inputs, **_MORE})
    return wider.insert(choose_pag, before="read_prompts")


TEXT_TO_IMAGE_PAG = _with_pag(TEXT_TO_IMAGE)
IMAGE_TO_IMAGE_PAG = _with_pag(IMAGE_TO_IMAGE)
INPAINTING_PAG = _with_pag(INPAINTING)
TEXT_TO_IMAGE_XL_PAG = _with_pag(TEXT_TO_IMAGE_XL)
IMAGE_TO_IMAGE_XL_PAG = _with_pag(IMAGE_TO_IMAGE_XL)
INPAINTING_XL_PAG = _with_pag(INPAINTING_XL)
