"""Stable Diffusion 1, 2 and XL with ControlNets or T2I-Adapters."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_NEEDS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_NEEDS_XL = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
_CLIPPED = {"steps_offset": 1, "clip_sample": False}
_CONTROLNET = "perfuse.tasks.controlnet:CONTROLNET_"
_ADAPTER = "perfuse.tasks.adapter:ADAPTER_"

_TEXT = {"text-to-image": f"{_CONTROLNET}TO_IMAGE"}
_IMAGE = {"image-to-image": f"{_CONTROLNET}IMAGE_TO_IMAGE"}
_INPAINT = {"inpainting": f"{_CONTROLNET}INPAINTING"}
_TEXT_XL = {"text-to-image": f"{_CONTROLNET}TO_IMAGE_XL"}
_IMAGE_XL = {"image-to-image": f"{_CONTROLNET}IMAGE_TO_IMAGE_XL"}
_INPAINT_XL = {"inpainting": f"{_CONTROLNET}INPAINTING_XL"}

_CONTROLNETS = tuple(
    PipelineManifest(
        class_name=class_name,
        tasks=tasks,
        needs=(*_NEEDS, "controlnet"),
        optional=_OPTIONAL,
        addable={"controlnet": class_name},
        corrects=_CLIPPED,
    )
    for class_name, tasks in {
        "StableDiffusionControlNetPipeline": {**_TEXT, **_IMAGE, **_INPAINT},
        "StableDiffusionControlNetImg2ImgPipeline": _IMAGE,
        "StableDiffusionControlNetInpaintPipeline": _INPAINT,
    }.items()
)
_CONTROLNETS_XL = tuple(
    PipelineManifest(
        class_name=class_name,
        tasks=tasks,
        needs=(*_NEEDS_XL, "controlnet"),
        optional=_OPTIONAL,
        addable={"controlnet": class_name},
    )
    for class_name, tasks in {
        "StableDiffusionXLControlNetPipeline": {**_TEXT_XL, **_IMAGE_XL, **_INPAINT_XL},
        "StableDiffusionXLControlNetImg2ImgPipeline": _IMAGE_XL,
        "StableDiffusionXLControlNetInpaintPipeline": _INPAINT_XL,
    }.items()
)
_ADAPTERS = (
    PipelineManifest(
        class_name="StableDiffusionAdapterPipeline",
        tasks={"text-to-image": f"{_ADAPTER}TO_IMAGE"},
        needs=(*_NEEDS, "adapter"),
        optional=_OPTIONAL,
        addable={"adapter": "StableDiffusionAdapterPipeline"},
        corrects=_CLIPPED,
    ),
    PipelineManifest(
        class_name="StableDiffusionXLAdapterPipeline",
        tasks={"text-to-image": f"{_ADAPTER}TO_IMAGE_XL"},
        needs=(*_NEEDS_XL, "adapter"),
        optional=_OPTIONAL,
        addable={"adapter": "StableDiffusionXLAdapterPipeline"},
    ),
)

PIPELINES = (*_CONTROLNETS, *_CONTROLNETS_XL, *_ADAPTERS)
