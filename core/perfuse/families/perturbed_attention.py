"""Stable Diffusion 1, 2 and XL with perturbed-attention guidance."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_NEEDS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_NEEDS_XL = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")

PIPELINES = (
    PipelineManifest(
        class_name="StableDiffusionPAGPipeline",
        tasks={"text-to-image": "perfuse.tasks.pag:TEXT_TO_IMAGE_PAG"},
        needs=_NEEDS,
        unused=("safety_checker", "feature_extractor", "image_encoder"),
        corrects={"steps_offset": 1, "clip_sample": False},
    ),
    PipelineManifest(
        class_name="StableDiffusionXLPAGPipeline",
        tasks={"text-to-image": "perfuse.tasks.pag:TEXT_TO_IMAGE_XL_PAG"},
        needs=_NEEDS_XL,
        unused=("feature_extractor", "image_encoder"),
    ),
)
