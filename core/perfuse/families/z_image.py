"""Z-Image and Z-Image-Turbo."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_NEEDS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
_TEXT = {"text-to-image": "perfuse.tasks.z_image:Z_TEXT_TO_IMAGE"}
_IMAGE = {"image-to-image": "perfuse.tasks.z_image:Z_IMAGE_TO_IMAGE"}
_REST = """
    num_inference_steps sigmas guidance_scale cfg_normalization cfg_truncation negative_prompt
    num_images_per_prompt generator latents prompt_embeds negative_prompt_embeds output_type
"""

PIPELINES = tuple(
    PipelineManifest(
        class_name=class_name,
        tasks=tasks,
        needs=_NEEDS,
        chat={"enable_thinking": True},
        arguments=tuple(f"{first} {_REST}".split()),
    )
    for class_name, tasks, first in (
        ("ZImagePipeline", {**_TEXT, **_IMAGE}, "prompt height width"),
        ("ZImageImg2ImgPipeline", _IMAGE, "prompt image strength height width"),
    )
)
