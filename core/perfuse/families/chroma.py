"""Chroma."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_ROOM = "perfuse.tasks.chroma"
_TEXT = {"text-to-image": f"{_ROOM}:CHROMA_TEXT_TO_IMAGE"}
_IMAGE = {"image-to-image": f"{_ROOM}:CHROMA_IMAGE_TO_IMAGE"}
#: The arguments of Diffusers' calls in order, after what each class begins with.
_REST = """
    generator latents prompt_embeds ip_adapter_image ip_adapter_image_embeds
    negative_ip_adapter_image negative_ip_adapter_image_embeds negative_prompt_embeds
    prompt_attention_mask negative_prompt_attention_mask output_type
"""
_STEPS = "num_inference_steps sigmas guidance_scale"

PIPELINES = tuple(
    PipelineManifest(
        class_name=f"Chroma{name}Pipeline",
        tasks=tasks,
        needs=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        optional=("image_encoder", "feature_extractor"),
        arguments=tuple(f"prompt negative_prompt {first} {_REST}".split()),
    )
    for name, tasks, first in (
        (
            "",
            {**_TEXT, **_IMAGE},
            f"height width {_STEPS} num_images_per_prompt",
        ),
        (
            "Img2Img",
            _IMAGE,
            f"image height width {_STEPS} strength num_images_per_prompt",
        ),
    )
)
