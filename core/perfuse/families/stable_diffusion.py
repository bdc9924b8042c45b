"""Stable Diffusion 1 and 2, and latent consistency models of them."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_TEXT = {"text-to-image": "perfuse.tasks.text_to_image:TEXT_TO_IMAGE"}
_IMAGE = {"image-to-image": "perfuse.tasks.image_to_image:IMAGE_TO_IMAGE"}
_INPAINT = {"inpainting": "perfuse.tasks.inpainting:INPAINTING"}
_ROOM = "perfuse.tasks.consistency"
_TEXT_FEW = {"text-to-image": f"{_ROOM}:CONSISTENCY_TEXT_TO_IMAGE"}
_IMAGE_FEW = {"image-to-image": f"{_ROOM}:CONSISTENCY_IMAGE_TO_IMAGE"}
_NEEDS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
_EDIT = {"instruct-pix2pix": "perfuse.tasks.instruct_pix2pix:INSTRUCT_PIX2PIX"}
_DEPTH = {"depth-to-image": "perfuse.tasks.depth_to_image:DEPTH_TO_IMAGE"}
_VARIATION = {"image-variation": "perfuse.tasks.image_variation:IMAGE_VARIATION"}
_UNCLIP = {"unclip": "perfuse.tasks.unclip:UNCLIP"}
_UPSCALE = {"upscale": "perfuse.tasks.upscale:UPSCALE"}
_LATENT_UPSCALE = {"latent-upscale": "perfuse.tasks.latent_upscale:LATENT_UPSCALE"}
_CLIPPED = {"steps_offset": 1, "clip_sample": False}
_SKIPPED = {"steps_offset": 1, "skip_prk_steps": True}
_CONSISTENCY = {"num_inference_steps": 4, "guidance_scale": 8.5}

PIPELINES = (
    PipelineManifest(
        class_name="StableDiffusionPipeline",
        tasks={**_TEXT, **_IMAGE, **_INPAINT},
        needs=_NEEDS,
        optional=_OPTIONAL,
        addable={
            "controlnet": "StableDiffusionControlNetPipeline",
            "adapter": "StableDiffusionAdapterPipeline",
        },
        corrects=_CLIPPED,
    ),
    PipelineManifest(
        class_name="StableDiffusionImg2ImgPipeline",
        tasks=_IMAGE,
        needs=_NEEDS,
        optional=_OPTIONAL,
        addable={"controlnet": "StableDiffusionControlNetImg2ImgPipeline"},
        corrects=_CLIPPED,
    ),
    PipelineManifest(
        class_name="StableDiffusionInpaintPipeline",
        tasks=_INPAINT,
        needs=_NEEDS,
        optional=_OPTIONAL,
        addable={"controlnet": "StableDiffusionControlNetInpaintPipeline"},
        corrects=_SKIPPED,
    ),
    PipelineManifest(
        class_name="LatentConsistencyModelPipeline",
        tasks={**_TEXT_FEW, **_IMAGE_FEW},
        needs=_NEEDS,
        optional=_OPTIONAL,
        defaults=_CONSISTENCY,
    ),
    PipelineManifest(
        class_name="LatentConsistencyModelImg2ImgPipeline",
        tasks=_IMAGE_FEW,
        needs=_NEEDS,
        optional=_OPTIONAL,
        defaults=_CONSISTENCY,
    ),
    PipelineManifest(
        class_name="StableDiffusionInstructPix2PixPipeline",
        tasks=_EDIT,
        needs=_NEEDS,
        optional=_OPTIONAL,
    ),
    PipelineManifest(
        class_name="StableDiffusionDepth2ImgPipeline",
        tasks=_DEPTH,
        needs=_NEEDS,
        optional=("depth_estimator", "feature_extractor"),
        corrects=_CLIPPED,
    ),
    PipelineManifest(
        class_name="StableDiffusionImageVariationPipeline",
        tasks=_VARIATION,
        needs=("unet", "vae", "image_encoder", "feature_extractor", "scheduler"),
        optional=("safety_checker",),
        corrects=_CLIPPED,
    ),
    PipelineManifest(
        class_name="StableUnCLIPImg2ImgPipeline",
        tasks=_UNCLIP,
        needs=(
            *_NEEDS,
            "image_encoder",
            "feature_extractor",
            "image_normalizer",
            "image_noising_scheduler",
        ),
    ),
    PipelineManifest(
        class_name="StableDiffusionUpscalePipeline",
        tasks=_UPSCALE,
        needs=(*_NEEDS, "low_res_scheduler"),
        optional=("safety_checker", "feature_extractor"),
        unused=("watermarker",),
        corrects_models={"vae": {"scaling_factor": 0.08333}},
    ),
    PipelineManifest(
        class_name="StableDiffusionLatentUpscalePipeline",
        tasks=_LATENT_UPSCALE,
        needs=_NEEDS,
    ),
)
