"""Pipelines that are given no words: noise to pictures and sound, and classes to pictures."""

from typing import Any

import torch

from perfuse_conformance.bridged.parts import mask, picture, vae
from perfuse_conformance.bridged.recipe import Made, recipe
from perfuse_conformance.cases.checkpoint_parts import ddpm_config

STEPS = {"num_inference_steps": 3, "output_type": "np", "generator": torch.Generator}


def unet(**fields: Any) -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(**ddpm_config(**fields))


@recipe("DDPMPipeline", "unconditional")
def _ddpm() -> Made:
    from diffusers import DDPMScheduler

    return Made(components={"unet": unet(), "scheduler": DDPMScheduler()}, call=STEPS)


@recipe("DDIMPipeline", "unconditional")
def _ddim() -> Made:
    from diffusers import DDIMScheduler

    return Made(components={"unet": unet(), "scheduler": DDIMScheduler()}, call=STEPS)


@recipe("PNDMPipeline", "unconditional")
def _pndm() -> Made:
    from diffusers import PNDMScheduler

    call = {**STEPS, "num_inference_steps": 4}
    return Made(components={"unet": unet(), "scheduler": PNDMScheduler()}, call=call)


@recipe("ScoreSdeVePipeline", "unconditional")
def _score() -> Made:
    from diffusers import ScoreSdeVeScheduler

    return Made(components={"unet": unet(), "scheduler": ScoreSdeVeScheduler()}, call=STEPS)


@recipe("KarrasVePipeline", "unconditional")
def _karras() -> Made:
    from diffusers import KarrasVeScheduler

    return Made(components={"unet": unet(), "scheduler": KarrasVeScheduler()}, call=STEPS)


@recipe("LDMPipeline", "unconditional")
def _latents() -> Made:
    from diffusers import DDIMScheduler

    kept = {
        "vqvae": vqvae(),
        "unet": unet(in_channels=3, out_channels=3),
        "scheduler": DDIMScheduler(),
    }
    return Made(components=kept, call=STEPS)


@recipe("RePaintPipeline", "inpainting")
def _repainted() -> Made:
    from diffusers import RePaintScheduler

    kept = {"unet": unet(), "scheduler": RePaintScheduler()}
    call = {**STEPS, "image": picture(), "mask_image": mask(), "num_inference_steps": 5}
    return Made(components=kept, call={**call, "jump_length": 2, "jump_n_sample": 2})


@recipe("ConsistencyModelPipeline", "unconditional")
def _consistency() -> Made:
    from diffusers import CMStochasticIterativeScheduler

    kept = {"unet": unet(num_class_embeds=10), "scheduler": CMStochasticIterativeScheduler()}
    return Made(components=kept, call={**STEPS, "class_labels": 3, "num_inference_steps": 2})


def vqvae() -> Any:
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=32,
    )


@recipe("LDMSuperResolutionPipeline", "upscaling")
def _super_resolution() -> Made:
    from diffusers import DDIMScheduler

    given = unet(in_channels=6, out_channels=3, sample_size=32)
    kept = {"vqvae": vqvae(), "unet": given, "scheduler": DDIMScheduler()}
    return Made(components=kept, call={**STEPS, "image": picture()})


@recipe("DiTPipeline", "class to image")
def _classes() -> Made:
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    kept = {"transformer": transformer, "vae": vae(), "scheduler": DDIMScheduler()}
    return Made(components=kept, call={**STEPS, "class_labels": [1, 2], "num_inference_steps": 2})


@recipe("DanceDiffusionPipeline", "sound")
def _dance() -> Made:
    from diffusers import IPNDMScheduler, UNet1DModel

    given = UNet1DModel(
        block_out_channels=(32, 32, 64),
        extra_in_channels=16,
        sample_size=512,
        sample_rate=16_000,
        in_channels=2,
        out_channels=2,
        flip_sin_to_cos=True,
        use_timestep_embedding=False,
        time_embedding_type="fourier",
        time_embedding_dim=16,
        mid_block_type="UNetMidBlock1D",
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )
    call = {"num_inference_steps": 3, "audio_length_in_s": 0.2, "generator": torch.Generator}
    return Made(components={"unet": given, "scheduler": IPNDMScheduler()}, call=call)
