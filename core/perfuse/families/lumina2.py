"""Lumina-Image 2.0."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

#: The arguments of Diffusers' calls in order.
_ARGUMENTS = """
    prompt width height num_inference_steps guidance_scale negative_prompt sigmas
    num_images_per_prompt generator latents prompt_embeds negative_prompt_embeds
    prompt_attention_mask negative_prompt_attention_mask output_type
"""

_SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text "
    "alignment based on textual prompts or user prompts."
)

PIPELINES = tuple(
    PipelineManifest(
        class_name=name,
        tasks={"text-to-image": "perfuse.tasks.lumina2:LUMINA_2"},
        needs=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        attributes={"system_prompt": _SYSTEM},
        arguments=tuple(_ARGUMENTS.split()),
    )
    for name in ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")
)
