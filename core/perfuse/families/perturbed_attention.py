"""Stable Diffusion 1, 2 and XL with perturbed-attention guidance by default."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_ROOM = "perfuse.tasks.pag"
_TEXT = {"text-to-image": f"{_ROOM}:TEXT_TO_IMAGE_PAG"}
_IMAGE = {"image-to-image": f"{_ROOM}:IMAGE_TO_IMAGE_PAG"}
_INPAINT = {"inpainting": f"{_ROOM}:INPAINTING_PAG"}
_TEXT_XL = {"text-to-image": f"{_ROOM}:TEXT_TO_IMAGE_XL_PAG"}
_IMAGE_XL = {"image-to-image": f"{_ROOM}:IMAGE_TO_IMAGE_XL_PAG"}
_INPAINT_XL = {"inpainting": f"{_ROOM}:INPAINTING_XL_PAG"}
_STRENGTH = {"strength": 0.9999}

PIPELINES = (
    *(
        PipelineManifest(
            class_name=class_name,
            tasks=tasks,
            needs=("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
            optional=("safety_checker", "feature_extractor", "image_encoder"),
            corrects={"steps_offset": 1, "clip_sample": False},
            defaults=_STRENGTH if tasks is _INPAINT else {},
        )
        for class_name, tasks in {
            "StableDiffusionPAGPipeline": {**_TEXT, **_IMAGE, **_INPAINT},
            "StableDiffusionPAGImg2ImgPipeline": _IMAGE,
            "StableDiffusionPAGInpaintPipeline": _INPAINT,
        }.items()
    ),
    *(
        PipelineManifest(
            class_name=class_name,
            tasks=tasks,
            needs=("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler"),
            optional=("feature_extractor", "image_encoder"),
            defaults={**_STRENGTH, "guidance_scale": 7.5} if tasks is _INPAINT_XL else {},
        )
        for class_name, tasks in {
            "StableDiffusionXLPAGPipeline": {**_TEXT_XL, **_IMAGE_XL, **_INPAINT_XL},
            "StableDiffusionXLPAGImg2ImgPipeline": _IMAGE_XL,
            "StableDiffusionXLPAGInpaintPipeline": _INPAINT_XL,
        }.items()
    ),
)
