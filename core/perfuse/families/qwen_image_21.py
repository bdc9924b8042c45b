"""Qwen-Image 2.1."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

#: The arguments of Diffusers' calls in order.
_ARGUMENTS = """
    prompt image negative_prompt true_cfg_scale height width num_inference_steps sigmas
    num_images_per_prompt generator latents prompt_embeds prompt_embeds_mask
    negative_prompt_embeds negative_prompt_embeds_mask output_type
"""

PIPELINES = (
    PipelineManifest(
        class_name="QwenImage21Pipeline",
        tasks={
            "text-to-image": "perfuse.tasks.qwen_image_21:QWEN_21_TEXT_TO_IMAGE",
            "image-editing": "perfuse.tasks.qwen_21_editing:QWEN_21_EDITING",
        },
        describes={"text_encoder": "perfuse.models.language_model.deep_vision:describe"},
        needs=("transformer", "vae", "text_encoder", "processor", "scheduler"),
        arguments=tuple(_ARGUMENTS.split()),
    ),
)
