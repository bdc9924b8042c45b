"""FLUX.2 klein."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_ARGUMENTS = (
    "image",
    "prompt",
    "height",
    "width",
    "num_inference_steps",
    "sigmas",
    "guidance_scale",
    "num_images_per_prompt",
    "generator",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "output_type",
)

PIPELINES = (
    PipelineManifest(
        class_name="Flux2KleinPipeline",
        tasks={
            "text-to-image": "perfuse.tasks.flux2:FLUX2_TEXT_TO_IMAGE",
            "image-editing": "perfuse.tasks.flux2_editing:FLUX2_EDITING",
        },
        needs=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        chat={"enable_thinking": False},
        attributes={"tokenizer_max_length": 512, "default_sample_size": 128},
        arguments=_ARGUMENTS,
    ),
)
