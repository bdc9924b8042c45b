"""Sana and Sana-Sprint."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_NEEDS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
#: The arguments of Diffusers' calls in order.
_SANA = """
    prompt negative_prompt num_inference_steps timesteps sigmas guidance_scale num_images_per_prompt
    height width eta generator latents prompt_embeds prompt_attention_mask negative_prompt_embeds
    negative_prompt_attention_mask output_type
"""
_SPRINT = """
    prompt num_inference_steps timesteps max_timesteps intermediate_timesteps guidance_scale
    num_images_per_prompt height width eta generator latents prompt_embeds prompt_attention_mask
    output_type
"""

PIPELINES = tuple(
    PipelineManifest(
        class_name=f"{name}Pipeline",
        tasks={"text-to-image": f"perfuse.tasks.sana:{task}"},
        needs=_NEEDS,
        arguments=tuple(arguments.split()),
    )
    for name, task, arguments in (
        ("Sana", "SANA", _SANA),
        ("SanaSprint", "SANA_SPRINT", _SPRINT),
    )
)
