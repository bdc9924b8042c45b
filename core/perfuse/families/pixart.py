"""PixArt-α and PixArt-Σ."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

#: The arguments of Diffusers' calls in order.
_ARGUMENTS = (
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "timesteps",
    "sigmas",
    "guidance_scale",
    "num_images_per_prompt",
    "height",
    "width",
    "eta",
    "generator",
    "latents",
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
    "output_type",
)

PIPELINES = tuple(
    PipelineManifest(
        class_name=f"PixArt{name.title()}Pipeline",
        tasks={"text-to-image": f"perfuse.tasks.pixart:PIXART_{name}"},
        needs=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        arguments=_ARGUMENTS,
    )
    for name in ("ALPHA", "SIGMA")
)
