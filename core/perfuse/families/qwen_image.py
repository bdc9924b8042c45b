"""Qwen-Image."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_ROOM = "perfuse.tasks.qwen_image"
_TEXT = {"text-to-image": f"{_ROOM}:QWEN_TEXT_TO_IMAGE"}
_IMAGE = {"image-to-image": f"{_ROOM}:QWEN_IMAGE_TO_IMAGE"}
_INPAINT = {"inpainting": f"{_ROOM}:QWEN_INPAINTING"}
_NEEDS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
_ATTRIBUTES = {"tokenizer_max_length": 1024, "default_sample_size": 128}
_FIRST = "prompt negative_prompt true_cfg_scale"
_REST = """
    num_inference_steps sigmas guidance_scale num_images_per_prompt generator latents prompt_embeds
    prompt_embeds_mask negative_prompt_embeds negative_prompt_embeds_mask output_type
"""
_EDITING = {"text_encoder": "perfuse.models.language_model.vision:describe"}
_MASKED = "image mask_image masked_image_latents height width padding_mask_crop strength"

PIPELINES = tuple(
    PipelineManifest(
        class_name=class_name,
        tasks=tasks,
        needs=_NEEDS,
        attributes=_ATTRIBUTES,
        arguments=tuple(f"{_FIRST} {own} {_REST}".split()),
    )
    for class_name, tasks, own in (
        ("QwenImagePipeline", {**_TEXT, **_IMAGE, **_INPAINT}, "height width"),
        ("QwenImageImg2ImgPipeline", _IMAGE, "image height width strength"),
        ("QwenImageInpaintPipeline", _INPAINT, _MASKED),
    )
)

PIPELINES += tuple(
    PipelineManifest(
        class_name=class_name,
        tasks={"image-editing": f"perfuse.tasks.qwen_editing:{task}"},
        needs=(*_NEEDS, "processor"),
        attributes=_ATTRIBUTES,
        describes=_EDITING,
        arguments=tuple(f"image {_FIRST} height width {_REST}".split()),
    )
    for class_name, task in (
        ("QwenImageEditPipeline", "QWEN_EDITING"),
        ("QwenImageEditPlusPipeline", "QWEN_EDITING_OF_SEVERAL"),
    )
)
