"""Stable Diffusion 1, 2 and XL with ControlNets, ControlNet-Unions or T2I-Adapters."""

from collections.abc import Mapping
from typing import Any

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES", "controlnets_xl"]

_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
_NEEDS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_NEEDS_XL = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")
_CLIPPED = {"steps_offset": 1, "clip_sample": False}
#: The word for a task in a class's name, to the task and the name of its object.
_TASKS = {
    "": ("text-to-image", "TO_IMAGE"),
    "Img2Img": ("image-to-image", "IMAGE_TO_IMAGE"),
    "Inpaint": ("inpainting", "INPAINTING"),
}


def controlnets_xl(word: str) -> dict[str, str]:
    """The classes of SD XL for a task that nets are added to, by an input that only such a net has."""
    return {
        "control_image": f"StableDiffusionXLControlNet{word}Pipeline",
        "control_modes": f"StableDiffusionXLControlNetUnion{word}Pipeline",
    }


def _classes(name: str, tasks: str, **settings: Any) -> tuple[PipelineManifest, ...]:
    """A class for each task, ``name`` with the task's word in it; the first has all tasks."""
    every = {task: tasks.format(end) for task, end in _TASKS.values()}
    return tuple(
        PipelineManifest(
            class_name=name.format(word),
            tasks={task: every[task]} if word else every,
            optional=_OPTIONAL,
            **settings,
            addable={"controlnet": controlnets_xl(word) if "XL" in name else name.format(word)},
        )
        for word, (task, _) in _TASKS.items()
    )


def _adapters(
    name: str, task: str, needs: tuple[str, ...], corrects: Mapping[str, Any]
) -> PipelineManifest:
    return PipelineManifest(
        class_name=name,
        tasks={"text-to-image": f"perfuse.tasks.adapter:{task}"},
        needs=(*needs, "adapter"),
        optional=_OPTIONAL,
        addable={"adapter": name},
        corrects=corrects,
    )


PIPELINES = (
    *_classes(
        "StableDiffusionControlNet{}Pipeline",
        "perfuse.tasks.controlnet:CONTROLNET_{}",
        needs=(*_NEEDS, "controlnet"),
        corrects=_CLIPPED,
    ),
    *_classes(
        "StableDiffusionXLControlNet{}Pipeline",
        "perfuse.tasks.controlnet:CONTROLNET_{}_XL",
        needs=(*_NEEDS_XL, "controlnet"),
    ),
    *_classes(
        "StableDiffusionXLControlNetUnion{}Pipeline",
        "perfuse.tasks.controlnet_union:UNION_{}_XL",
        needs=(*_NEEDS_XL, "controlnet"),
    ),
    _adapters("StableDiffusionAdapterPipeline", "ADAPTER_TO_IMAGE", _NEEDS, _CLIPPED),
    _adapters("StableDiffusionXLAdapterPipeline", "ADAPTER_TO_IMAGE_XL", _NEEDS_XL, {}),
)
