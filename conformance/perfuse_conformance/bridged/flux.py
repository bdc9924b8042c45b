"""Flux and what is built like it: rectified flows of packed latents, T5 and CLIP."""

from typing import Any

import torch

from perfuse_conformance.bridged.parts import (
    PROMPT,
    SIDE,
    clip,
    flow,
    mask,
    picture,
    siglip,
    t5,
    tokenizer,
    vae,
)
from perfuse_conformance.bridged.recipe import Made, recipe

STEPS = {"num_inference_steps": 3, "output_type": "np", "generator": torch.Generator}
ASKED = {
    **STEPS,
    "prompt": PROMPT,
    "height": SIDE,
    "width": SIDE,
    "max_sequence_length": 16,
}
FROM_PICTURE = {**ASKED, "strength": 0.7, "image": picture()}
#: A transformer of 32 numbers with two heads.
SIZES = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
SIZES |= {"num_attention_heads": 2, "joint_attention_dim": 32}


def autoencoder() -> Any:
    return vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False)


def transformer(channels: int = 16, **fields: Any) -> Any:
    """Flux's transformer; four latents of four channels are one token of 16."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        out_channels=16,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        **SIZES,
        **fields,
    )


def parts(**changes: Any) -> dict[str, Any]:
    return {
        "scheduler": flow(),
        "vae": autoencoder(),
        "text_encoder": clip(),
        "tokenizer": tokenizer(start=True),
        "text_encoder_2": t5(),
        "tokenizer_2": tokenizer(),
        "transformer": transformer(),
        **changes,
    }


@recipe("FluxPipeline", "text to image")
def _text_to_image() -> Made:
    kept = parts(transformer=transformer(guidance_embeds=True))
    return Made(components=kept, call=ASKED)


@recipe("FluxImg2ImgPipeline", "image to image")
def _image_to_image() -> Made:
    return Made(components=parts(), call=FROM_PICTURE)


@recipe("FluxInpaintPipeline", "inpainting")
def _inpainting() -> Made:
    return Made(components=parts(), call={**FROM_PICTURE, "mask_image": mask()})


@recipe("FluxControlPipeline", "ControlNet")
def _controlled_by_channels() -> Made:
    kept = parts(transformer=transformer(32))
    return Made(components=kept, call={**ASKED, "control_image": picture()})


@recipe("FluxControlImg2ImgPipeline", "ControlNet")
def _controlled_from_picture() -> Made:
    kept = parts(transformer=transformer(32))
    return Made(components=kept, call={**FROM_PICTURE, "control_image": picture(seed=1)})


@recipe("FluxControlInpaintPipeline", "ControlNet")
def _controlled_inpainting() -> Made:
    kept = parts(transformer=transformer(32))
    call = {**FROM_PICTURE, "control_image": picture(seed=1), "mask_image": mask()}
    return Made(components=kept, call=call)


@recipe("FluxFillPipeline", "inpainting")
def _filled() -> Made:
    # A token is given four latents of the picture and four times four pixels of the mask.
    kept = parts(transformer=transformer(16 + 16 + 16))
    call = {**ASKED, "image": picture(), "mask_image": mask()}
    return Made(components=kept, call=call)


@recipe("FluxKontextPipeline", "image to image")
def _in_context() -> Made:
    call = {**ASKED, "image": picture(), "_auto_resize": False, "max_area": SIDE * SIDE}
    return Made(components=parts(), call=call)


def controlnet() -> Any:
    from diffusers import FluxControlNetModel

    return FluxControlNetModel(
        patch_size=1, in_channels=16, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), **SIZES
    )


@recipe("FluxControlNetPipeline", "ControlNet")
def _controlled() -> Made:
    kept = parts(controlnet=controlnet())
    return Made(components=kept, call={**ASKED, "control_image": picture()})


@recipe("FluxControlNetImg2ImgPipeline", "ControlNet")
def _controlnet_from_picture() -> Made:
    kept = parts(controlnet=controlnet())
    return Made(components=kept, call={**FROM_PICTURE, "control_image": picture(seed=1)})


@recipe("FluxControlNetInpaintPipeline", "ControlNet")
def _controlnet_inpainting() -> Made:
    call = {**FROM_PICTURE, "control_image": picture(seed=1), "mask_image": mask()}
    return Made(components=parts(controlnet=controlnet()), call=call)


def chroma(**changes: Any) -> dict[str, Any]:
    from diffusers import ChromaTransformer2DModel

    given = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
        **SIZES,
    )
    return {
        "scheduler": flow(),
        "vae": autoencoder(),
        "text_encoder": t5(),
        "tokenizer": tokenizer(),
        "transformer": given,
        **changes,
    }


@recipe("ChromaPipeline", "text to image")
def _chroma() -> Made:
    return Made(components=chroma(), call=ASKED)


@recipe("ChromaImg2ImgPipeline", "image to image")
def _chroma_from_picture() -> Made:
    return Made(components=chroma(), call=FROM_PICTURE)


@recipe("ChromaInpaintPipeline", "inpainting")
def _chroma_inpainting() -> Made:
    kept = chroma()
    # Diffusers 0.42's pipeline asks for an entry that the class of its transformer does not have.
    kept["transformer"].register_to_config(guidance_embeds=False)
    return Made(components=kept, call={**FROM_PICTURE, "mask_image": mask()})


@recipe("FluxKontextInpaintPipeline", "inpainting")
def _in_context_inpainting() -> Made:
    call = {**FROM_PICTURE, "mask_image": mask(), "_auto_resize": False, "max_area": SIDE * SIDE}
    return Made(components=parts(), call=call)


@recipe("FluxPriorReduxPipeline", "image to embedding")
def _redux() -> Made:
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipImageProcessor

    kept = {
        "image_encoder": siglip(),
        "feature_extractor": SiglipImageProcessor(size={"height": SIDE, "width": SIDE}),
        "image_embedder": ReduxImageEncoder(redux_dim=32, txt_in_features=32),
        "text_encoder": clip(),
        "tokenizer": tokenizer(start=True, length=77),
        "text_encoder_2": t5(),
        "tokenizer_2": tokenizer(),
    }
    embedded = {"prompt_embeds": torch.randn(1, 16, 32), "pooled_prompt_embeds": torch.randn(1, 32)}
    return Made(components=kept, call={"image": picture(), **embedded})


def klein() -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    from perfuse_conformance.bridged.parts import language_model

    sizes = {**SIZES, "joint_attention_dim": 2 * 32, "timestep_guidance_channels": 32}
    given = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False, **sizes
    )
    autoencoder = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    )
    return {
        "scheduler": flow(),
        "vae": autoencoder,
        "text_encoder": language_model("Qwen3", "ForCausalLM"),
        "tokenizer": tokenizer(length=32, chat=True),
        "transformer": given,
    }


KLEIN = {**ASKED, "text_encoder_out_layers": (1, 2)}


@recipe("Flux2KleinPipeline", "text to image")
def _klein() -> Made:
    return Made(components=klein(), call=KLEIN)


@recipe("Flux2KleinInpaintPipeline", "inpainting")
def _klein_inpainting() -> Made:
    call = {**KLEIN, "image": picture(64), "mask_image": mask(64), "height": 64, "width": 64}
    return Made(components=klein(), call={**call, "strength": 0.7})


@recipe("Flux2KleinKVPipeline", "image to image")
def _klein_remembering() -> Made:
    return Made(components=klein(), call={**KLEIN, "image": picture(64)})
