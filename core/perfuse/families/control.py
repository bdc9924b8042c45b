"""Stable Diffusion 1, 2 and XL with ControlNets or T2I-Adapters."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_NEEDS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_NEEDS_XL = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_CLIPPED = {"steps_offset": 1, "clip_sample": False}
_CONTROLNET = "perfuse.tasks.controlnet:CONTROLNET_"
_ADAPTER = "perfuse.tasks.adapter:ADAPTER_"

PIPELINES = (
    PipelineManifest(
        class_name="StableDiffusionControlNetPipeline",
        tasks={"text-to-image": f"{_CONTROLNET}TO_IMAGE"},
        needs=(*_NEEDS, "controlnet"),
        unused=_UNUSED,
        addable={"controlnet": "StableDiffusionControlNetPipeline"},
        corrects=_CLIPPED,
    ),
    PipelineManifest(
        class_name="StableDiffusionXLControlNetPipeline",
        tasks={"text-to-image": f"{_CONTROLNET}TO_IMAGE_XL"},
        needs=(*_NEEDS_XL, "controlnet"),
        unused=_UNUSED,
        addable={"controlnet": "StableDiffusionXLControlNetPipeline"},
    ),
    PipelineManifest(
        class_name="StableDiffusionAdapterPipeline",
        tasks={"text-to-image": f"{_ADAPTER}TO_IMAGE"},
        needs=(*_NEEDS, "adapter"),
        unused=_UNUSED,
        addable={"adapter": "StableDiffusionAdapterPipeline"},
        corrects=_CLIPPED,
    ),
    PipelineManifest(
        class_name="StableDiffusionXLAdapterPipeline",
        tasks={"text-to-image": f"{_ADAPTER}TO_IMAGE_XL"},
        needs=(*_NEEDS_XL, "adapter"),
        unused=_UNUSED,
        addable={"adapter": "StableDiffusionXLAdapterPipeline"},
    ),
)
