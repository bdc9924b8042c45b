"""Qwen-Image."""

from typing import Any

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_ROOM = "perfuse.tasks.qwen_image"
_TEXT = {"text-to-image": f"{_ROOM}:QWEN_TEXT_TO_IMAGE"}
_IMAGE = {"image-to-image": f"{_ROOM}:QWEN_IMAGE_TO_IMAGE"}
_INPAINT = {"inpainting": f"{_ROOM}:QWEN_INPAINTING"}
_NEEDS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def _attributes(system: str, pictures: str, start: int) -> dict[str, Any]:
    """What a caller reads and may set, by the words that the language model is told first."""
    return {
        "tokenizer_max_length": 1024,
        "default_sample_size": 128,
        "prompt_template_encode": (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{pictures}{{}}<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
        # The tokens of the text before a prompt and its pictures, whose states are left out.
        "prompt_template_encode_start_idx": start,
    }


_DRAWING = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:"
)
_CHANGING = (
    "Describe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with the "
    "original input where appropriate."
)
_SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
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
        attributes=_attributes(_DRAWING, "", 34),
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
        attributes=_attributes(_CHANGING, pictures, 64),
        describes=_EDITING,
        arguments=tuple(f"image {_FIRST} height width {_REST}".split()),
    )
    for class_name, task, pictures in (
        ("QwenImageEditPipeline", "QWEN_EDITING", _SEEN),
        ("QwenImageEditPlusPipeline", "QWEN_EDITING_OF_SEVERAL", ""),
    )
)
