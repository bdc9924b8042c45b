"""Stable Diffusion XL and its refiner."""

from typing import Any

from perfuse.contract.hooks import PipelineManifest
from perfuse.families.control import controlnets_xl

__all__ = ["PIPELINES"]

_TEXT = {"text-to-image": "perfuse.tasks.text_to_image_xl:TEXT_TO_IMAGE_XL"}
_IMAGE = {"image-to-image": "perfuse.tasks.image_to_image_xl:IMAGE_TO_IMAGE_XL"}
_INPAINT = {"inpainting": "perfuse.tasks.image_to_image_xl:INPAINTING_XL"}
_EDIT = {"instruct-pix2pix": "perfuse.tasks.instruct_pix2pix:INSTRUCT_PIX2PIX_XL"}
_NEEDS = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")  # the refiner has no other
_OPTIONAL = ("feature_extractor", "image_encoder")

_ADDABLE: dict[str, dict[str, Any]] = {
    "StableDiffusionXLPipeline": {
        "controlnet": controlnets_xl(""),
        "adapter": "StableDiffusionXLAdapterPipeline",
    },
    "StableDiffusionXLImg2ImgPipeline": {"controlnet": controlnets_xl("Img2Img")},
    "StableDiffusionXLInpaintPipeline": {"controlnet": controlnets_xl("Inpaint")},
}

PIPELINES = tuple(
    PipelineManifest(
        class_name=class_name,
        tasks=tasks,
        needs=_NEEDS,
        optional=_OPTIONAL,
        addable=_ADDABLE.get(class_name, {}),
    )
    for class_name, tasks in {
        "StableDiffusionXLPipeline": {**_TEXT, **_IMAGE, **_INPAINT},
        "StableDiffusionXLImg2ImgPipeline": _IMAGE,
        "StableDiffusionXLInpaintPipeline": _INPAINT,
        "StableDiffusionXLInstructPix2PixPipeline": _EDIT,
    }.items()
)
