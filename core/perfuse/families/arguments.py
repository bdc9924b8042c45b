"""The order of a call's arguments, and what it returns, as Diffusers has them: by pipeline class."""

import dataclasses

from perfuse.contract.hooks import PipelineManifest

__all__ = ["ARGUMENTS", "CHECKED", "with_arguments"]

#: Pipeline class to the arguments that come before ``return_dict``, in order.
ARGUMENTS = {
    name: tuple(text.split())
    for name, text in {
        "StableDiffusionPipeline": """
            prompt height width num_inference_steps timesteps sigmas
            guidance_scale negative_prompt num_images_per_prompt eta generator
            latents prompt_embeds negative_prompt_embeds ip_adapter_image
            ip_adapter_image_embeds output_type
        """,
        "StableDiffusionImg2ImgPipeline": """
            prompt image strength num_inference_steps timesteps sigmas
            guidance_scale negative_prompt num_images_per_prompt eta generator
            prompt_embeds negative_prompt_embeds ip_adapter_image
            ip_adapter_image_embeds output_type
        """,
        "StableDiffusionInpaintPipeline": """
            prompt image mask_image masked_image_latents height width
            padding_mask_crop strength num_inference_steps timesteps sigmas
            guidance_scale negative_prompt num_images_per_prompt eta generator
            latents prompt_embeds negative_prompt_embeds ip_adapter_image
            ip_adapter_image_embeds output_type
        """,
        "StableDiffusionDepth2ImgPipeline": """
            prompt image depth_map strength num_inference_steps guidance_scale
            negative_prompt num_images_per_prompt eta generator prompt_embeds
            negative_prompt_embeds output_type
        """,
        "StableDiffusionInstructPix2PixPipeline": """
            prompt image num_inference_steps guidance_scale image_guidance_scale
            negative_prompt num_images_per_prompt eta generator latents
            prompt_embeds negative_prompt_embeds ip_adapter_image
            ip_adapter_image_embeds output_type
        """,
        "StableDiffusionUpscalePipeline": """
            prompt image num_inference_steps guidance_scale noise_level
            negative_prompt num_images_per_prompt eta generator latents
            prompt_embeds negative_prompt_embeds output_type
        """,
        "StableDiffusionLatentUpscalePipeline": """
            prompt image num_inference_steps guidance_scale negative_prompt
            generator latents prompt_embeds negative_prompt_embeds
            pooled_prompt_embeds negative_pooled_prompt_embeds output_type
        """,
        "StableDiffusionImageVariationPipeline": """
            image height width num_inference_steps guidance_scale
            num_images_per_prompt eta generator latents output_type
        """,
        "StableUnCLIPPipeline": """
            prompt height width num_inference_steps guidance_scale negative_prompt
            num_images_per_prompt eta generator latents prompt_embeds
            negative_prompt_embeds output_type
        """,
        "StableUnCLIPImg2ImgPipeline": """
            image prompt height width num_inference_steps guidance_scale
            negative_prompt num_images_per_prompt eta generator latents
            prompt_embeds negative_prompt_embeds output_type
        """,
        "StableDiffusionXLPipeline": """
            prompt prompt_2 height width num_inference_steps timesteps sigmas
            denoising_end guidance_scale negative_prompt negative_prompt_2
            num_images_per_prompt eta generator latents prompt_embeds
            negative_prompt_embeds pooled_prompt_embeds
            negative_pooled_prompt_embeds ip_adapter_image ip_adapter_image_embeds
            output_type
        """,
        "StableDiffusionXLImg2ImgPipeline": """
            prompt prompt_2 image strength num_inference_steps timesteps sigmas
            denoising_start denoising_end guidance_scale negative_prompt
            negative_prompt_2 num_images_per_prompt eta generator latents
            prompt_embeds negative_prompt_embeds pooled_prompt_embeds
            negative_pooled_prompt_embeds ip_adapter_image ip_adapter_image_embeds
            output_type
        """,
        "StableDiffusionXLInpaintPipeline": """
            prompt prompt_2 image mask_image masked_image_latents height width
            padding_mask_crop strength num_inference_steps timesteps sigmas
            denoising_start denoising_end guidance_scale negative_prompt
            negative_prompt_2 num_images_per_prompt eta generator latents
            prompt_embeds negative_prompt_embeds pooled_prompt_embeds
            negative_pooled_prompt_embeds ip_adapter_image ip_adapter_image_embeds
            output_type
        """,
        "StableDiffusionXLInstructPix2PixPipeline": """
            prompt prompt_2 image height width num_inference_steps denoising_end
            guidance_scale image_guidance_scale negative_prompt negative_prompt_2
            num_images_per_prompt eta generator latents prompt_embeds
            negative_prompt_embeds pooled_prompt_embeds
            negative_pooled_prompt_embeds output_type
        """,
        "StableDiffusionControlNetPipeline": """
            prompt image height width num_inference_steps timesteps sigmas
            guidance_scale negative_prompt num_images_per_prompt eta generator
            latents prompt_embeds negative_prompt_embeds ip_adapter_image
            ip_adapter_image_embeds output_type
        """,
        "StableDiffusionControlNetImg2ImgPipeline": """
            prompt image control_image height width strength num_inference_steps
            guidance_scale negative_prompt num_images_per_prompt eta generator
            latents prompt_embeds negative_prompt_embeds ip_adapter_image
            ip_adapter_image_embeds output_type
        """,
        "StableDiffusionControlNetInpaintPipeline": """
            prompt image mask_image control_image height width padding_mask_crop
            strength num_inference_steps guidance_scale negative_prompt
            num_images_per_prompt eta generator latents prompt_embeds
            negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds
            output_type
        """,
        "StableDiffusionXLControlNetPipeline": """
            prompt prompt_2 image height width num_inference_steps timesteps
            sigmas denoising_end guidance_scale negative_prompt negative_prompt_2
            num_images_per_prompt eta generator latents prompt_embeds
            negative_prompt_embeds pooled_prompt_embeds
            negative_pooled_prompt_embeds ip_adapter_image ip_adapter_image_embeds
            output_type
        """,
        "StableDiffusionXLControlNetImg2ImgPipeline": """
            prompt prompt_2 image control_image height width strength
            num_inference_steps guidance_scale negative_prompt
            negative_prompt_2 num_images_per_prompt eta generator latents
            prompt_embeds negative_prompt_embeds pooled_prompt_embeds
            negative_pooled_prompt_embeds ip_adapter_image
            ip_adapter_image_embeds output_type
        """,
        "StableDiffusionXLControlNetInpaintPipeline": """
            prompt prompt_2 image mask_image control_image height width
            padding_mask_crop strength num_inference_steps denoising_start
            denoising_end guidance_scale negative_prompt negative_prompt_2
            num_images_per_prompt eta generator latents prompt_embeds
            negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds
            pooled_prompt_embeds negative_pooled_prompt_embeds output_type
        """,
        "StableDiffusionAdapterPipeline": """
            prompt image height width num_inference_steps timesteps sigmas
            guidance_scale negative_prompt num_images_per_prompt eta generator
            latents prompt_embeds negative_prompt_embeds output_type
        """,
        "StableDiffusionXLAdapterPipeline": """
            prompt prompt_2 image height width num_inference_steps timesteps
            sigmas denoising_end guidance_scale negative_prompt
            negative_prompt_2 num_images_per_prompt eta generator latents
            prompt_embeds negative_prompt_embeds pooled_prompt_embeds
            negative_pooled_prompt_embeds ip_adapter_image
            ip_adapter_image_embeds output_type
        """,
        "LatentConsistencyModelPipeline": """
            prompt height width num_inference_steps original_inference_steps
            timesteps guidance_scale num_images_per_prompt generator latents
            prompt_embeds ip_adapter_image ip_adapter_image_embeds output_type
        """,
        "LatentConsistencyModelImg2ImgPipeline": """
            prompt image num_inference_steps strength original_inference_steps
            timesteps guidance_scale num_images_per_prompt generator latents
            prompt_embeds ip_adapter_image ip_adapter_image_embeds output_type
        """,
        "DDPMPipeline": """
            batch_size generator num_inference_steps output_type
        """,
        "DDIMPipeline": """
            batch_size generator eta num_inference_steps use_clipped_model_output
            output_type
        """,
    }.items()
}
_WORDS = ("", "Img2Img", "Inpaint")
#: Pipeline class to the one whose arguments it has.
_ALIKE = {
    f"{family}{more}{word}Pipeline": f"{family}{word}Pipeline"
    for family, more in (
        ("StableDiffusion", "PAG"),
        ("StableDiffusionXL", "PAG"),
        ("StableDiffusionXLControlNet", "Union"),
    )
    for word in _WORDS
}
ARGUMENTS |= {name: ARGUMENTS[like] for name, like in _ALIKE.items()}
_UNION = "StableDiffusionXLControlNetUnionPipeline"
ARGUMENTS[_UNION] = tuple(
    "control_image" if name == "image" else name for name in ARGUMENTS[_UNION]
)
_CHECKED = ("", "ControlNet", "PAG")
#: Pipeline classes that also return whether a safety checker objected to the pictures.
CHECKED = frozenset(
    (
        *(f"StableDiffusion{kind}{word}Pipeline" for kind in _CHECKED for word in _WORDS),
        "StableDiffusionUpscalePipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionImageVariationPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    )
)


def with_arguments(manifest: PipelineManifest) -> PipelineManifest:
    """A manifest of core with the order of its class's arguments, and what a call returns."""
    more = ("nsfw_content_detected",) if manifest.class_name in CHECKED else ()
    return dataclasses.replace(
        manifest,
        arguments=manifest.arguments or ARGUMENTS.get(manifest.class_name, ()),
        returns=(*manifest.returns, *more),
    )
