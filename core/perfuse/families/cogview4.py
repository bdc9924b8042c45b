"""CogView 4."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

#: The arguments of Diffusers' calls in order.
_ARGUMENTS = """
    prompt negative_prompt height width num_inference_steps timesteps sigmas guidance_scale
    num_images_per_prompt generator latents prompt_embeds negative_prompt_embeds original_size
    crops_coords_top_left output_type
"""

PIPELINES = (
    PipelineManifest(
        class_name="CogView4Pipeline",
        tasks={"text-to-image": "perfuse.tasks.cogview4:COGVIEW_4"},
        needs=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        arguments=tuple(_ARGUMENTS.split()),
    ),
)
