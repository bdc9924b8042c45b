"""AuraFlow."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

#: The arguments of Diffusers' calls in order.
_ARGUMENTS = """
    prompt negative_prompt num_inference_steps sigmas guidance_scale num_images_per_prompt height
    width generator latents prompt_embeds prompt_attention_mask negative_prompt_embeds
    negative_prompt_attention_mask max_sequence_length output_type
"""

PIPELINES = (
    PipelineManifest(
        class_name="AuraFlowPipeline",
        tasks={"text-to-image": "perfuse.tasks.aura_flow:AURA_FLOW"},
        needs=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        arguments=tuple(_ARGUMENTS.split()),
    ),
)
