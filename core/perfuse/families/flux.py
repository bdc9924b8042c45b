"""FLUX.1: dev, schnell and what was trained from them."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_ROOM = "perfuse.tasks.flux"
_TEXT = {"text-to-image": f"{_ROOM}:FLUX_TEXT_TO_IMAGE"}
_IMAGE = {"image-to-image": f"{_ROOM}:FLUX_IMAGE_TO_IMAGE"}
_INPAINT = {"inpainting": f"{_ROOM}:FLUX_INPAINTING"}
_FILL = {"inpainting": "perfuse.tasks.flux_fill:FLUX_FILL"}
_EDIT = {"image-editing": "perfuse.tasks.flux_kontext:FLUX_KONTEXT"}
_NEEDS = (
    "transformer",
    "vae",
    "text_encoder",
    "tokenizer",
    "text_encoder_2",
    "tokenizer_2",
    "scheduler",
)

#: The arguments of Diffusers' calls in order: those before and after what is drawn from.
_FIRST = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "true_cfg_scale")
_SIZE = ("height", "width")
_REST = (
    "num_inference_steps",
    "sigmas",
    "guidance_scale",
    "num_images_per_prompt",
    "generator",
    "latents",
    "prompt_embeds",
    "pooled_prompt_embeds",
    "ip_adapter_image",
    "ip_adapter_image_embeds",
    "negative_ip_adapter_image",
    "negative_ip_adapter_image_embeds",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "output_type",
)
_MASKED = ("image", "mask_image", "masked_image_latents", *_SIZE)
_WITHOUT_NEGATIVE = tuple(name for name in _REST if not name.startswith(("negative", "ip_")))

PIPELINES = tuple(
    PipelineManifest(
        class_name=class_name,
        tasks=tasks,
        needs=_NEEDS,
        optional=("image_encoder", "feature_extractor"),
        attributes={"tokenizer_max_length": 77},
        arguments=arguments,
    )
    for class_name, tasks, arguments in (
        ("FluxPipeline", {**_TEXT, **_IMAGE, **_INPAINT}, (*_FIRST, *_SIZE, *_REST)),
        ("FluxImg2ImgPipeline", _IMAGE, (*_FIRST, "image", *_SIZE, "strength", *_REST)),
        (
            "FluxInpaintPipeline",
            _INPAINT,
            (*_FIRST, *_MASKED, "padding_mask_crop", "strength", *_REST),
        ),
        ("FluxFillPipeline", _FILL, (*_FIRST[:2], *_MASKED, "strength", *_WITHOUT_NEGATIVE)),
        ("FluxKontextPipeline", _EDIT, ("image", *_FIRST, *_SIZE, *_REST)),
    )
)
