"""Stable Diffusion 3 and 3.5."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_ROOM = "perfuse.tasks.stable_diffusion_3"
_TEXT = {"text-to-image": f"{_ROOM}:SD3_TEXT_TO_IMAGE"}
_IMAGE = {"image-to-image": f"{_ROOM}:SD3_IMAGE_TO_IMAGE"}
_INPAINT = {"inpainting": f"{_ROOM}:SD3_INPAINTING"}
_NEEDS = (
    "transformer",
    "vae",
    "text_encoder",
    "tokenizer",
    "text_encoder_2",
    "tokenizer_2",
    "scheduler",
)

#: The arguments of Diffusers' calls in order.
_FIRST = ("prompt", "prompt_2", "prompt_3")
_SIZE = ("height", "width")
_REST = (
    "num_inference_steps",
    "sigmas",
    "guidance_scale",
    "negative_prompt",
    "negative_prompt_2",
    "negative_prompt_3",
    "num_images_per_prompt",
    "generator",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
_ADAPTER = ("ip_adapter_image", "ip_adapter_image_embeds")
_MASKED = ("image", "mask_image", "masked_image_latents", *_SIZE, "padding_mask_crop", "strength")

PIPELINES = tuple(
    PipelineManifest(
        class_name=class_name,
        tasks=tasks,
        needs=_NEEDS,
        optional=("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"),
        attributes={"tokenizer_max_length": 77},
        arguments=(*_FIRST, *arguments),
    )
    for class_name, tasks, arguments in (
        (
            "StableDiffusion3Pipeline",
            {**_TEXT, **_IMAGE, **_INPAINT},
            (*_SIZE, *_REST, *_ADAPTER, "output_type"),
        ),
        (
            "StableDiffusion3Img2ImgPipeline",
            _IMAGE,
            (*_SIZE, "image", "strength", *_REST, "output_type", *_ADAPTER),
        ),
        (
            "StableDiffusion3InpaintPipeline",
            _INPAINT,
            (*_MASKED, *_REST, *_ADAPTER, "output_type"),
        ),
    )
)
