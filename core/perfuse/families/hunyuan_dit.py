"""Hunyuan-DiT."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

#: The arguments of Diffusers' calls in order.
_ARGUMENTS = """
    prompt height width num_inference_steps guidance_scale negative_prompt num_images_per_prompt eta
    generator latents prompt_embeds prompt_embeds_2 negative_prompt_embeds negative_prompt_embeds_2
    prompt_attention_mask prompt_attention_mask_2 negative_prompt_attention_mask
    negative_prompt_attention_mask_2 output_type
"""

PIPELINES = (
    PipelineManifest(
        class_name="HunyuanDiTPipeline",
        tasks={"text-to-image": "perfuse.tasks.hunyuan_dit:HUNYUAN_DIT"},
        needs=(
            "transformer",
            "vae",
            "text_encoder",
            "tokenizer",
            "text_encoder_2",
            "tokenizer_2",
            "scheduler",
        ),
        optional=("safety_checker", "feature_extractor"),
        arguments=tuple(_ARGUMENTS.split()),
        returns=("images", "nsfw_content_detected"),
    ),
)
