"""Text to image with transformers other than Flux's: SD3, PixArt, Sana, Qwen-Image, …"""

from typing import Any

import torch

from perfuse_conformance.bridged.parts import (
    PROMPT,
    SIDE,
    bert,
    clip,
    flow,
    language_model,
    mask,
    picture,
    qwen_vl,
    t5,
    tokenizer,
    vae,
    vae_of_eight,
)
from perfuse_conformance.bridged.recipe import Made, recipe

STEPS = {"num_inference_steps": 3, "output_type": "np", "generator": torch.Generator}
ASKED = {**STEPS, "prompt": PROMPT, "height": SIDE, "width": SIDE}
SHORT = {**ASKED, "max_sequence_length": 16}
FROM_PICTURE = {"strength": 0.7, "image": picture()}
#: A transformer of Kandinsky 5 of 32 numbers with two heads.
KANDINSKY5: dict[str, Any] = {
    "in_text_dim": 32,
    "in_text_dim2": 32,
    "time_dim": 16,
    "model_dim": 32,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
}


# ── Stable Diffusion 3 ──────────────────────────────────────────────────────────────────────────

SD3 = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
}


def sd3(**changes: Any) -> dict[str, Any]:
    from diffusers import SD3Transformer2DModel

    return {
        "transformer": SD3Transformer2DModel(**SD3, qk_norm="rms_norm", dual_attention_layers=(0,)),
        "scheduler": flow(),
        "vae": vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False),
        "text_encoder": clip(projected=True),
        "tokenizer": tokenizer(start=True),
        "text_encoder_2": clip(projected=True),
        "tokenizer_2": tokenizer(start=True),
        "text_encoder_3": t5(64),
        "tokenizer_3": tokenizer(),
        **changes,
    }


@recipe("StableDiffusion3Pipeline", "text to image")
def _sd3() -> Made:
    return Made(components=sd3(), call=SHORT)


@recipe("StableDiffusion3Img2ImgPipeline", "image to image")
def _sd3_from_picture() -> Made:
    return Made(components=sd3(), call={**SHORT, **FROM_PICTURE})


@recipe("StableDiffusion3InpaintPipeline", "inpainting")
def _sd3_inpainting() -> Made:
    from diffusers import SD3Transformer2DModel

    sixteen = {**SD3, "in_channels": 16, "out_channels": 16}
    kept = sd3(
        transformer=SD3Transformer2DModel(**sixteen),
        vae=vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, latent_channels=16),
    )
    return Made(components=kept, call={**SHORT, **FROM_PICTURE, "mask_image": mask()})


@recipe("StableDiffusion3ControlNetPipeline", "ControlNet")
def _sd3_controlled() -> Made:
    from diffusers import SD3ControlNetModel

    sizes = {name: value for name, value in SD3.items() if name != "num_layers"}
    kept = sd3(controlnet=SD3ControlNetModel(**sizes, num_layers=1))
    return Made(components=kept, call={**SHORT, "control_image": picture()})


@recipe("StableDiffusion3PAGPipeline", "text to image")
def _sd3_perturbed() -> Made:
    from diffusers import SD3Transformer2DModel

    kept = sd3(transformer=SD3Transformer2DModel(**SD3), pag_applied_layers=["blocks.0"])
    return Made(components=kept, call={**SHORT, "pag_scale": 2.0})


@recipe("StableDiffusion3PAGImg2ImgPipeline", "image to image")
def _sd3_perturbed_from_picture() -> Made:
    from diffusers import SD3Transformer2DModel

    kept = sd3(transformer=SD3Transformer2DModel(**SD3), pag_applied_layers=["blocks.0"])
    return Made(components=kept, call={**SHORT, **FROM_PICTURE, "pag_scale": 2.0})


@recipe("StableDiffusion3ControlNetInpaintingPipeline", "ControlNet")
def _sd3_controlled_inpainting() -> Made:
    from diffusers import SD3ControlNetModel

    sizes = {name: value for name, value in SD3.items() if name != "num_layers"}
    given = SD3ControlNetModel(**sizes, num_layers=1, extra_conditioning_channels=1)
    call = {**SHORT, "control_image": picture(), "control_mask": mask()}
    return Made(components=sd3(controlnet=given), call=call)


# ── PixArt, AuraFlow, Hunyuan-DiT, CogView ──────────────────────────────────────────────────────


def pixart(**changes: Any) -> dict[str, Any]:
    from diffusers import DDIMScheduler, PixArtTransformer2DModel

    given = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        cross_attention_dim=32,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "vae": vae(),
        "transformer": given,
        "scheduler": DDIMScheduler(),
        **changes,
    }


PIXART = {**SHORT, "use_resolution_binning": False, "clean_caption": False}


@recipe("PixArtAlphaPipeline", "text to image")
def _pixart_alpha() -> Made:
    return Made(components=pixart(), call=PIXART)


@recipe("PixArtSigmaPipeline", "text to image")
def _pixart_sigma() -> Made:
    return Made(components=pixart(), call=PIXART)


@recipe("PixArtSigmaPAGPipeline", "text to image")
def _pixart_perturbed() -> Made:
    kept = pixart(pag_applied_layers=["blocks.1"])
    return Made(components=kept, call={**PIXART, "pag_scale": 2.0})


def aura_flow() -> dict[str, Any]:
    from diffusers import AuraFlowTransformer2DModel

    given = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(multilingual=True),
        "vae": vae(),
        "transformer": given,
        "scheduler": flow(),
    }


@recipe("AuraFlowPipeline", "text to image")
def _aura_flow() -> Made:
    return Made(components=aura_flow(), call=SHORT)


def hunyuan_dit(**changes: Any) -> dict[str, Any]:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel

    given = HunyuanDiT2DModel(
        sample_size=4,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=32,
    )
    return {
        "vae": vae_of_eight(),
        "text_encoder": bert(),
        "tokenizer": tokenizer(length=77),
        "transformer": given,
        "scheduler": DDPMScheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "text_encoder_2": t5(),
        "tokenizer_2": tokenizer(length=256),
        **changes,
    }


@recipe("HunyuanDiTPipeline", "text to image")
def _hunyuan_dit() -> Made:
    return Made(components=hunyuan_dit(), call={**ASKED, "use_resolution_binning": False})


@recipe("HunyuanDiTPAGPipeline", "text to image")
def _hunyuan_dit_perturbed() -> Made:
    kept = hunyuan_dit(pag_applied_layers=["blocks.1"])
    call = {**ASKED, "use_resolution_binning": False, "pag_scale": 2.0}
    return Made(components=kept, call=call)


@recipe("HunyuanDiTControlNetPipeline", "ControlNet")
def _hunyuan_dit_controlled() -> Made:
    from diffusers import HunyuanDiT2DControlNetModel

    given = HunyuanDiT2DControlNetModel(
        conditioning_channels=3,
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=4,
        hidden_size=32,
        transformer_num_layers=2,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
    )
    call = {**ASKED, "use_resolution_binning": False, "control_image": picture()}
    return Made(components=hunyuan_dit(controlnet=given), call=call)


@recipe("CogView3PlusPipeline", "text to image")
def _cogview3() -> Made:
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusTransformer2DModel

    given = CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=16,
    )
    kept = {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "vae": vae(),
        "transformer": given,
        "scheduler": CogVideoXDDIMScheduler(),
    }
    return Made(components=kept, call=SHORT)


def cogview4(channels: int = 4) -> dict[str, Any]:
    from diffusers import CogView4Transformer2DModel

    given = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=4,
    )
    shifted = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256}
    return {
        "tokenizer": tokenizer(length=16),
        "text_encoder": language_model("Glm", "ForCausalLM"),
        "vae": vae(),
        "transformer": given,
        "scheduler": flow(**shifted, use_dynamic_shifting=True, time_shift_type="linear"),
    }


@recipe("CogView4Pipeline", "text to image")
def _cogview4() -> Made:
    return Made(components=cogview4(), call=SHORT)


@recipe("CogView4ControlPipeline", "ControlNet")
def _cogview4_controlled() -> Made:
    return Made(components=cogview4(8), call={**SHORT, "control_image": picture()})


# ── Transformers with a language model as text encoder ──────────────────────────────────────────


#: Of the transformer, and of a ControlNet beside it.
_SANA_SIZES: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 32,
    "sample_size": 16,
}


def sana(**changes: Any) -> dict[str, Any]:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    given = SanaTransformer2DModel(**_SANA_SIZES, **changes)
    blocks = ("ResBlock", "EfficientViTBlock")
    autoencoder = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.41407,
    )
    return {
        "tokenizer": tokenizer(length=300),
        "text_encoder": language_model("Gemma2", "Model"),
        "vae": autoencoder,
        "transformer": given,
        "scheduler": flow(shift=3.0),
    }


SANA = {**SHORT, "use_resolution_binning": False, "complex_human_instruction": None}


@recipe("SanaPipeline", "text to image")
def _sana() -> Made:
    return Made(components=sana(), call=SANA)


@recipe("SanaSprintPipeline", "text to image")
def _sana_sprint() -> Made:
    from diffusers import SCMScheduler

    kept = {
        **sana(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
        "scheduler": SCMScheduler(),
    }
    return Made(components=kept, call={**SANA, "num_inference_steps": 2})


@recipe("SanaSprintImg2ImgPipeline", "image to image")
def _sana_sprint_from_picture() -> Made:
    kept = _sana_sprint().components
    return Made(components=kept, call={**SANA, "num_inference_steps": 2, **FROM_PICTURE})


@recipe("SanaPAGPipeline", "text to image")
def _sana_perturbed() -> Made:
    kept = {**sana(), "pag_applied_layers": ["transformer_blocks.0"]}
    return Made(components=kept, call={**SANA, "pag_scale": 2.0})


@recipe("SanaControlNetPipeline", "ControlNet")
def _sana_controlled() -> Made:
    from diffusers import SanaControlNetModel

    kept = {**sana(), "controlnet": SanaControlNetModel(**_SANA_SIZES)}
    return Made(components=kept, call={**SANA, "control_image": picture()})


@recipe("LuminaPipeline", "text to image")
def _lumina() -> Made:
    from diffusers import LuminaNextDiT2DModel

    given = LuminaNextDiT2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=4,
        multiple_of=16,
        ffn_dim_multiplier=None,
        cross_attention_dim=32,
    )
    kept = {
        "transformer": given,
        "scheduler": flow(),
        "vae": vae(),
        "text_encoder": language_model("Gemma", "Model"),
        "tokenizer": tokenizer(),
    }
    return Made(components=kept, call=SHORT)


@recipe("Lumina2Pipeline", "text to image")
def _lumina2() -> Made:
    from diffusers import Lumina2Transformer2DModel

    given = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(64, 32, 32),
        cap_feat_dim=32,
    )
    kept = {
        "transformer": given,
        "scheduler": flow(),
        "vae": vae(shift_factor=0.06, scaling_factor=1.5),
        "text_encoder": language_model("Gemma2", "Model"),
        "tokenizer": tokenizer(),
    }
    return Made(components=kept, call=SHORT)


def qwen_image(**fields: Any) -> dict[str, Any]:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    given = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 4, 4),
        **fields,
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return {
        "scheduler": flow(),
        "vae": autoencoder,
        "text_encoder": qwen_vl(),
        "tokenizer": tokenizer(length=128, chat=True),
        "transformer": given,
    }


QWEN = {**SHORT, "negative_prompt": "a green square", "true_cfg_scale": 2.0}


@recipe("QwenImagePipeline", "text to image")
def _qwen_image() -> Made:
    return Made(components=qwen_image(), call=QWEN)


@recipe("QwenImageImg2ImgPipeline", "image to image")
def _qwen_image_from_picture() -> Made:
    return Made(components=qwen_image(), call={**QWEN, **FROM_PICTURE})


@recipe("QwenImageInpaintPipeline", "inpainting")
def _qwen_image_inpainting() -> Made:
    call = {**QWEN, **FROM_PICTURE, "mask_image": mask()}
    return Made(components=qwen_image(), call=call)


@recipe("QwenImageControlNetPipeline", "ControlNet")
def _qwen_image_controlled() -> Made:
    from diffusers import QwenImageControlNetModel

    given = QwenImageControlNetModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 4, 4),
    )
    kept = {**qwen_image(), "controlnet": given}
    return Made(components=kept, call={**QWEN, "control_image": picture()})


def z_image() -> dict[str, Any]:
    from diffusers import ZImageTransformer2DModel

    given = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return {
        "scheduler": flow(),
        "vae": vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False),
        "text_encoder": language_model("Qwen3", "Model"),
        "tokenizer": tokenizer(length=64, chat=True),
        "transformer": given,
    }


@recipe("ZImagePipeline", "text to image")
def _z_image() -> Made:
    return Made(components=z_image(), call=SHORT)


@recipe("ZImageImg2ImgPipeline", "image to image")
def _z_image_from_picture() -> Made:
    return Made(components=z_image(), call={**SHORT, **FROM_PICTURE})


@recipe("ZImageInpaintPipeline", "inpainting")
def _z_image_inpainting() -> Made:
    return Made(components=z_image(), call={**SHORT, **FROM_PICTURE, "mask_image": mask()})


@recipe("ZImageControlNetPipeline", "ControlNet")
def _z_image_controlled() -> Made:
    from diffusers import ZImageControlNetModel

    given = ZImageControlNetModel(
        control_layers_places=[0],
        control_in_dim=4,
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    kept = z_image()
    kept["controlnet"] = ZImageControlNetModel.from_transformer(given, kept["transformer"])
    return Made(components=kept, call={**SHORT, "control_image": picture()})


@recipe("HiDreamImagePipeline", "text to image")
def _hidream() -> Made:
    from diffusers import HiDreamImageTransformer2DModel

    given = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 32],
        text_emb_dim=64,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=[0, 1],
    )
    kept = {
        "transformer": given,
        "scheduler": flow(),
        "vae": vae(shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False),
        "text_encoder": clip(projected=True),
        "tokenizer": tokenizer(start=True),
        "text_encoder_2": clip(projected=True),
        "tokenizer_2": tokenizer(start=True),
        "text_encoder_3": t5(),
        "tokenizer_3": tokenizer(),
        "text_encoder_4": language_model("Llama", "ForCausalLM"),
        "tokenizer_4": tokenizer(),
    }
    return Made(components=kept, call=SHORT)


@recipe("Kandinsky5T2IPipeline", "text to image")
def _kandinsky5() -> Made:
    from diffusers import Kandinsky5Transformer3DModel

    given = Kandinsky5Transformer3DModel(**KANDINSKY5, in_visual_dim=4, out_visual_dim=4)
    kept = {
        "transformer": given,
        "vae": vae_of_eight(),
        "text_encoder": qwen_vl(),
        "tokenizer": tokenizer(length=512),
        "text_encoder_2": clip(max_position_embeddings=77),
        "tokenizer_2": tokenizer(start=True, length=77),
        "scheduler": flow(shift=5.0),
    }
    # It draws in sizes of its own alone: this one has the fewest pixels.
    call = {**ASKED, "height": 1408, "width": 640, "num_inference_steps": 2}
    return Made(components=kept, call={**call, "output_type": "latent"})
