"""Stable Diffusion XL: every task, with ControlNets, adapters and perturbed-attention guidance."""

from typing import Any

import torch

from perfuse_conformance.bridged.parts import (
    PROMPT,
    SIDE,
    clip,
    mask,
    picture,
    tokenizer,
    unet,
    vae,
    vae_of_eight,
)
from perfuse_conformance.bridged.recipe import Made, recipe
from perfuse_conformance.cases.checkpoint_parts import (
    controlnet_config,
    unet_config,
    union_config,
)

STEPS = {"num_inference_steps": 3, "output_type": "np", "generator": torch.Generator}
ASKED = {**STEPS, "prompt": PROMPT, "height": SIDE, "width": SIDE}
FROM_PICTURE = {**STEPS, "prompt": PROMPT, "strength": 0.7}
#: Two encoders of 32 numbers, an embedding of 32, six sizes of 8 numbers.
FIELDS = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 64,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
    "use_linear_projection": True,
    "transformer_layers_per_block": 1,
}


def parts(*, channels: int = 4, times: int = 6, **changes: Any) -> dict[str, Any]:
    """The components of an SDXL pipeline; ``times`` sizes are told to the UNet."""
    from diffusers import EulerDiscreteScheduler

    given = {**FIELDS, "projection_class_embeddings_input_dim": times * 8 + 32}
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "text_encoder_2": clip(projected=True),
        "tokenizer": tokenizer(start=True),
        "tokenizer_2": tokenizer(start=True),
        "unet": unet(**given, in_channels=channels),
        "scheduler": EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012),
        **changes,
    }


def controlnet() -> Any:
    from diffusers import ControlNetModel

    return ControlNetModel(**controlnet_config(unet_config(**FIELDS)))


def union() -> Any:
    from diffusers import ControlNetUnionModel

    return ControlNetUnionModel(**union_config(unet_config(**FIELDS)))


@recipe("StableDiffusionXLPipeline", "text to image")
def _text_to_image() -> Made:
    return Made(components=parts(), call=ASKED)


@recipe("StableDiffusionXLImg2ImgPipeline", "image to image")
def _image_to_image() -> Made:
    kept = parts(requires_aesthetics_score=False)
    return Made(components=kept, call={**FROM_PICTURE, "image": picture()})


@recipe("StableDiffusionXLInpaintPipeline", "inpainting")
def _inpainting() -> Made:
    call = {**ASKED, "strength": 0.7, "image": picture(), "mask_image": mask()}
    return Made(components=parts(channels=9), call=call)


@recipe("StableDiffusionXLInstructPix2PixPipeline", "image to image")
def _instructed() -> Made:
    return Made(components=parts(channels=8), call={**ASKED, "image": picture()})


@recipe("StableDiffusionXLPAGPipeline", "text to image")
def _perturbed() -> Made:
    kept = parts(pag_applied_layers=["mid"])
    return Made(components=kept, call={**ASKED, "pag_scale": 3.0})


@recipe("StableDiffusionXLPAGImg2ImgPipeline", "image to image")
def _perturbed_from_picture() -> Made:
    kept = parts(pag_applied_layers=["mid"])
    return Made(components=kept, call={**FROM_PICTURE, "image": picture(), "pag_scale": 3.0})


@recipe("StableDiffusionXLControlNetPipeline", "ControlNet")
def _controlled() -> Made:
    kept = parts(controlnet=controlnet())
    return Made(components=kept, call={**ASKED, "image": picture()})


@recipe("StableDiffusionXLControlNetImg2ImgPipeline", "ControlNet")
def _controlled_from_picture() -> Made:
    call = {**FROM_PICTURE, "image": picture(), "control_image": picture(seed=1)}
    return Made(components=parts(controlnet=controlnet()), call=call)


@recipe("StableDiffusionXLControlNetInpaintPipeline", "ControlNet")
def _controlled_inpainting() -> Made:
    call = {**ASKED, "image": picture(), "mask_image": mask(), "control_image": picture(seed=1)}
    return Made(components=parts(controlnet=controlnet()), call=call)


@recipe("StableDiffusionXLControlNetUnionPipeline", "ControlNet")
def _controlled_by_union() -> Made:
    call = {**ASKED, "control_image": [picture()], "control_mode": [1]}
    return Made(components=parts(controlnet=union()), call=call)


@recipe("StableDiffusionXLAdapterPipeline", "ControlNet")
def _t2i_adapter() -> Made:
    from diffusers import T2IAdapter

    # XL's first level has no attention: what is added to it is half as wide as the latents.
    given = T2IAdapter(
        channels=[32, 64, 64, 64],
        num_res_blocks=1,
        downscale_factor=4,
        adapter_type="full_adapter_xl",
    )
    kept = parts(adapter=given)
    return Made(components=kept, call={**ASKED, "image": picture()})


@recipe("StableDiffusionXLPAGInpaintPipeline", "inpainting")
def _perturbed_inpainting() -> Made:
    call = {**ASKED, "strength": 0.7, "image": picture(), "mask_image": mask(), "pag_scale": 3.0}
    return Made(components=parts(channels=9, pag_applied_layers=["mid"]), call=call)


@recipe("StableDiffusionXLControlNetPAGPipeline", "ControlNet")
def _controlled_perturbed() -> Made:
    kept = parts(controlnet=controlnet(), pag_applied_layers=["mid"])
    return Made(components=kept, call={**ASKED, "image": picture(), "pag_scale": 3.0})


@recipe("StableDiffusionXLControlNetPAGImg2ImgPipeline", "ControlNet")
def _controlled_perturbed_from_picture() -> Made:
    kept = parts(controlnet=controlnet(), pag_applied_layers=["mid"])
    call = {**FROM_PICTURE, "image": picture(), "control_image": picture(seed=1)}
    return Made(components=kept, call={**call, "pag_scale": 3.0})


@recipe("StableDiffusionXLControlNetUnionImg2ImgPipeline", "ControlNet")
def _controlled_by_union_from_picture() -> Made:
    call = {**FROM_PICTURE, "image": picture(), "control_image": [picture(seed=1)]}
    return Made(components=parts(controlnet=union()), call={**call, "control_mode": [1]})


@recipe("StableDiffusionXLControlNetUnionInpaintPipeline", "ControlNet")
def _controlled_by_union_inpainting() -> Made:
    call = {**ASKED, "image": picture(), "mask_image": mask(), "control_image": [picture(seed=1)]}
    return Made(components=parts(controlnet=union()), call={**call, "control_mode": [1]})


@recipe("StableDiffusionXLControlNetXSPipeline", "ControlNet")
def _controlled_small() -> Made:
    from diffusers import ControlNetXSAdapter

    given = unet(**{**FIELDS, "layers_per_block": 2})
    adapter = ControlNetXSAdapter.from_unet(given, size_ratio=0.5, learn_time_embedding=True)
    kept = parts(unet=given, controlnet=adapter, vae=vae_of_eight())
    return Made(components=kept, call={**ASKED, "image": picture()})
