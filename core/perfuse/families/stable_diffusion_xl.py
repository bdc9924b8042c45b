"""Stable Diffusion XL and its refiner."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_TEXT = {"text-to-image": "perfuse.tasks.text_to_image_xl:TEXT_TO_IMAGE_XL"}
_NEEDS = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")  # the refiner has no other
_UNUSED = ("feature_extractor", "image_encoder")

PIPELINES = tuple(
    PipelineManifest(class_name=class_name, tasks=_TEXT, needs=_NEEDS, unused=_UNUSED)
    for class_name in (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    )
)
