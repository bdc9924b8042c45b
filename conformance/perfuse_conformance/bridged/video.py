"""Text and pictures to video."""

from typing import Any

import torch

from perfuse_conformance.bridged.parts import (
    PROMPT,
    SIDE,
    clip,
    clip_vision,
    flow,
    image_processor,
    language_model,
    picture,
    qwen_vl,
    siglip,
    t5,
    tokenizer,
    unet,
    vae,
    video,
)
from perfuse_conformance.bridged.recipe import Made, recipe

STEPS = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator}
ASKED = {**STEPS, "prompt": PROMPT, "height": SIDE, "width": SIDE}
SHORT = {**ASKED, "max_sequence_length": 16}
DDIM = {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def ddim(**fields: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**DDIM, **fields)


# ── UNets over frames ───────────────────────────────────────────────────────────────────────────


def animated(**changes: Any) -> dict[str, Any]:
    """Stable Diffusion with motion modules."""
    from diffusers import MotionAdapter

    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
    )
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": tokenizer(start=True),
        "unet": unet(),
        "motion_adapter": adapter,
        "scheduler": ddim(),
        **changes,
    }


@recipe("AnimateDiffPipeline", "text to video")
def _animated() -> Made:
    return Made(components=animated(), call={**ASKED, "num_frames": 4})


@recipe("AnimateDiffVideoToVideoPipeline", "video to video")
def _animated_from_video() -> Made:
    call = {**ASKED, "video": video(4), "strength": 0.7, "num_inference_steps": 3}
    return Made(components=animated(), call=call)


@recipe("AnimateDiffPAGPipeline", "text to video")
def _animated_perturbed() -> Made:
    kept = animated(pag_applied_layers=["mid"])
    return Made(components=kept, call={**ASKED, "num_frames": 4, "pag_scale": 2.0})


@recipe("AnimateDiffControlNetPipeline", "ControlNet")
def _animated_controlled() -> Made:
    from diffusers import ControlNetModel

    from perfuse_conformance.cases.checkpoint_parts import controlnet_config, unet_config

    kept = animated(controlnet=ControlNetModel(**controlnet_config(unet_config())))
    call = {**ASKED, "num_frames": 2, "conditioning_frames": video(2)}
    return Made(components=kept, call=call)


@recipe("AnimateDiffVideoToVideoControlNetPipeline", "ControlNet")
def _animated_from_video_controlled() -> Made:
    kept = {**animated(), "controlnet": _animated_controlled().components["controlnet"]}
    call = {**ASKED, "video": video(2), "conditioning_frames": video(2), "strength": 0.7}
    return Made(components=kept, call={**call, "num_inference_steps": 3})


@recipe("AnimateDiffSparseControlNetPipeline", "ControlNet")
def _animated_from_frames() -> Made:
    from diffusers import SparseControlNetModel

    given = SparseControlNetModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        cross_attention_dim=32,
        norm_num_groups=8,
        attention_head_dim=4,
        conditioning_channels=3,
        conditioning_embedding_out_channels=(8, 8),
        motion_num_attention_heads=4,
        use_simplified_condition_embedding=False,
    )
    kept = animated(controlnet=given)
    call = {**ASKED, "num_frames": 2, "conditioning_frames": video(1)}
    return Made(components=kept, call={**call, "controlnet_frame_indices": [0]})


@recipe("PIAPipeline", "image to video")
def _animated_picture() -> Made:
    from diffusers import MotionAdapter

    kept = animated(unet=unet())
    kept["motion_adapter"] = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
        conv_in_channels=9,
    )
    return Made(components=kept, call={**ASKED, "image": picture(), "num_frames": 2})


@recipe("AnimateDiffSDXLPipeline", "text to video")
def _animated_xl() -> Made:
    from diffusers import MotionAdapter

    from perfuse_conformance.bridged.stable_diffusion_xl import parts

    kept = parts(scheduler=ddim(timestep_spacing="linspace"))
    kept["motion_adapter"] = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
        use_motion_mid_block=False,
    )
    return Made(components=kept, call={**ASKED, "num_frames": 2})


@recipe("StableVideoDiffusionPipeline", "image to video")
def _stable_video() -> Made:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        UNetSpatioTemporalConditionModel,
    )

    given = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=8,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )
    autoencoder = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
    )
    kept = {
        "vae": autoencoder,
        "image_encoder": clip_vision(image_size=224, patch_size=32),
        "unet": given,
        "scheduler": EulerDiscreteScheduler(
            prediction_type="v_prediction",
            timestep_type="continuous",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
        ),
        "feature_extractor": image_processor(),
    }
    call = {**STEPS, "image": picture(), "num_frames": 2, "height": SIDE, "width": SIDE}
    return Made(components=kept, call={**call, "decode_chunk_size": 2})


def _unet_of_frames(kind: str, **fields: Any) -> Any:
    import diffusers

    return getattr(diffusers, kind)(
        block_out_channels=(8, 8),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        **fields,
    )


def modelscope() -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": tokenizer(start=True),
        "unet": _unet_of_frames("UNet3DConditionModel"),
        "scheduler": ddim(),
    }


@recipe("TextToVideoSDPipeline", "text to video")
def _text_to_video() -> Made:
    return Made(components=modelscope(), call={**ASKED, "num_frames": 4})


@recipe("VideoToVideoSDPipeline", "video to video")
def _video_to_video() -> Made:
    call = {**STEPS, "prompt": PROMPT, "video": video(3), "strength": 0.8, "num_inference_steps": 3}
    return Made(components=modelscope(), call=call)


@recipe("I2VGenXLPipeline", "image to video")
def _i2vgen() -> Made:
    kept = {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": tokenizer(start=True),
        "image_encoder": clip_vision(),
        "feature_extractor": image_processor(),
        "unet": _unet_of_frames("I2VGenXLUNet", num_attention_heads=None),
        "scheduler": ddim(),
    }
    call = {**ASKED, "image": picture(), "num_frames": 4, "clip_skip": None}
    return Made(components=kept, call=call)


# ── Transformers over space and time ────────────────────────────────────────────────────────────

WAN_VAE = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
WAN_VAE |= {"temperal_downsample": [False, True, True]}
WAN = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12}
WAN |= {"text_dim": 32, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}


def wan(kind: str = "WanTransformer3DModel", **fields: Any) -> dict[str, Any]:
    import diffusers

    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(multilingual=True),
        "vae": diffusers.AutoencoderKLWan(**WAN_VAE),
        "scheduler": flow(shift=7.0),
        "transformer": getattr(diffusers, kind)(**{**WAN, "in_channels": 16, **fields}),
    }


@recipe("WanPipeline", "text to video")
def _wan() -> Made:
    return Made(components=wan(), call={**SHORT, "num_frames": 5})


def embedded(length: int = 16) -> dict[str, Any]:
    """A prompt that is embedded already: the pipelines clean words with a package of their own."""
    words = {"prompt_embeds": torch.randn(1, length, 32)}
    words |= {"negative_prompt_embeds": torch.randn(1, length, 32)}
    return {**STEPS, **words, "num_frames": 5, "height": SIDE, "width": SIDE}


@recipe("WanImageToVideoPipeline", "image to video")
def _wan_from_picture() -> Made:
    kept = wan(in_channels=36, image_dim=32, added_kv_proj_dim=24)
    kept |= {"image_processor": image_processor(), "image_encoder": clip_vision()}
    # What precedes the last 512 tokens is the picture to the transformer, however long a prompt is.
    return Made(components=kept, call={**embedded(length=512), "image": picture()})


@recipe("WanVideoToVideoPipeline", "video to video")
def _wan_from_video() -> Made:
    call = {**embedded(), "video": video(5), "strength": 0.7, "num_inference_steps": 3}
    call.pop("num_frames")
    return Made(components=wan(), call=call)


@recipe("SkyReelsV2Pipeline", "text to video")
def _sky_reels() -> Made:
    from diffusers import UniPCMultistepScheduler

    kept = wan("SkyReelsV2Transformer3DModel")
    kept["scheduler"] = UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True)
    return Made(components=kept, call=embedded())


@recipe("SkyReelsV2ImageToVideoPipeline", "image to video")
def _sky_reels_from_picture() -> Made:
    from diffusers import UniPCMultistepScheduler

    kept = wan("SkyReelsV2Transformer3DModel", in_channels=36, image_dim=32, added_kv_proj_dim=24)
    kept["scheduler"] = UniPCMultistepScheduler(flow_shift=5.0, use_flow_sigmas=True)
    kept |= {"image_processor": image_processor(), "image_encoder": clip_vision()}
    return Made(components=kept, call={**embedded(length=512), "image": picture()})


@recipe("SkyReelsV2DiffusionForcingPipeline", "text to video")
def _sky_reels_forcing() -> Made:
    from diffusers import UniPCMultistepScheduler

    kept = wan("SkyReelsV2Transformer3DModel", inject_sample_info=True)
    kept["scheduler"] = UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True)
    return Made(components=kept, call={**embedded(), "prompt": None})


@recipe("WanVACEPipeline", "video to video")
def _wan_all_in_one() -> Made:
    kept = wan("WanVACETransformer3DModel", vace_layers=[0, 1], vace_in_channels=96)
    white = [picture().point(lambda value: 255)] * 5
    return Made(components=kept, call={**embedded(), "video": video(5), "mask": white})


def ltx() -> dict[str, Any]:
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    given = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    autoencoder = AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return {
        "scheduler": flow(),
        "vae": autoencoder,
        "text_encoder": t5(),
        "tokenizer": tokenizer(),
        "transformer": given,
    }


@recipe("LTXPipeline", "text to video")
def _ltx() -> Made:
    return Made(components=ltx(), call={**SHORT, "num_frames": 9})


@recipe("LTXImageToVideoPipeline", "image to video")
def _ltx_from_picture() -> Made:
    return Made(components=ltx(), call={**SHORT, "num_frames": 9, "image": picture()})


@recipe("LTXConditionPipeline", "image to video")
def _ltx_conditioned() -> Made:
    return Made(components=ltx(), call={**SHORT, "num_frames": 9, "image": picture()})


@recipe("MochiPipeline", "text to video")
def _mochi() -> Made:
    from diffusers import AutoencoderKLMochi, MochiTransformer3DModel

    given = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=16,
        max_sequence_length=16,
    )
    autoencoder = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    kept = {
        "scheduler": flow(),
        "vae": autoencoder,
        "text_encoder": t5(),
        "tokenizer": tokenizer(),
        "transformer": given,
    }
    return Made(components=kept, call={**SHORT, "num_frames": 7})


def hunyuan_vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def hunyuan_words() -> dict[str, Any]:
    return {
        "text_encoder": language_model("Llama", "Model"),
        "tokenizer": tokenizer(length=64),
        "text_encoder_2": clip(max_position_embeddings=77),
        "tokenizer_2": tokenizer(start=True, length=77),
    }


HUNYUAN = {**SHORT, "prompt_template": {"template": "a white {}", "crop_start": 2}}


@recipe("HunyuanVideoPipeline", "text to video")
def _hunyuan() -> Made:
    return Made(components=hunyuan(), call={**HUNYUAN, "num_frames": 9})


@recipe("HunyuanSkyreelsImageToVideoPipeline", "image to video")
def _hunyuan_sky_reels() -> Made:
    call = {**HUNYUAN, "num_frames": 9, "image": picture()}
    return Made(components=hunyuan(8), call=call)


@recipe("HunyuanVideoFramepackPipeline", "image to video")
def _hunyuan_frames() -> Made:
    from diffusers import HunyuanVideoFramepackTransformer3DModel
    from transformers import SiglipImageProcessor

    given = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(2, 4, 4),
        has_image_proj=True,
        image_proj_dim=32,
        has_clean_x_embedder=True,
    )
    kept = {
        **hunyuan_words(),
        "transformer": given,
        "vae": hunyuan_vae(),
        "scheduler": flow(shift=7.0),
        "image_encoder": siglip(),
        "feature_extractor": SiglipImageProcessor(size={"height": SIDE, "width": SIDE}),
    }
    call = {**HUNYUAN, "num_frames": 9, "latent_window_size": 3, "image": picture()}
    return Made(components=kept, call=call)


def hunyuan(channels: int = 4) -> dict[str, Any]:
    from diffusers import HunyuanVideoTransformer3DModel

    given = HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
    )
    return {
        **hunyuan_words(),
        "transformer": given,
        "vae": hunyuan_vae(),
        "scheduler": flow(shift=7.0),
    }


def cogvideo(channels: int = 4) -> dict[str, Any]:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

    given = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=16,
    )
    autoencoder = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "vae": autoencoder,
        "transformer": given,
        "scheduler": ddim(),
    }


@recipe("CogVideoXPipeline", "text to video")
def _cogvideo() -> Made:
    return Made(components=cogvideo(), call={**SHORT, "num_frames": 8})


@recipe("CogVideoXImageToVideoPipeline", "image to video")
def _cogvideo_from_picture() -> Made:
    return Made(components=cogvideo(8), call={**SHORT, "num_frames": 8, "image": picture()})


@recipe("CogVideoXVideoToVideoPipeline", "video to video")
def _cogvideo_from_video() -> Made:
    call = {**SHORT, "video": video(9), "strength": 0.7, "num_inference_steps": 3}
    return Made(components=cogvideo(), call=call)


@recipe("CogVideoXFunControlPipeline", "ControlNet")
def _cogvideo_controlled() -> Made:
    return Made(components=cogvideo(8), call={**SHORT, "control_video": video(9)})


@recipe("LattePipeline", "text to video")
def _latte() -> Made:
    from diffusers import LatteTransformer3DModel

    from perfuse_conformance.bridged.parts import vae_of_eight

    given = LatteTransformer3DModel(
        sample_size=4,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=2,
    )
    kept = {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "vae": vae_of_eight(),
        "transformer": given,
        "scheduler": ddim(),
    }
    return Made(components=kept, call={**ASKED, "video_length": 2, "clean_caption": False})


@recipe("AllegroPipeline", "text to video")
def _allegro() -> Made:
    from diffusers import AllegroTransformer3DModel, AutoencoderKLAllegro

    given = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=32,
    )
    autoencoder = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    kept = {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "vae": autoencoder,
        "transformer": given,
        "scheduler": ddim(),
    }
    # Its autoencoder decodes tiles alone: the latents are compared.
    call = {**SHORT, "num_frames": 8, "output_type": "latent", "clean_caption": False}
    return Made(components=kept, call=call)


def kandinsky5(**fields: Any) -> dict[str, Any]:
    from diffusers import Kandinsky5Transformer3DModel

    from perfuse_conformance.bridged.image_transformers import KANDINSKY5

    given = Kandinsky5Transformer3DModel(
        **KANDINSKY5, in_visual_dim=4, out_visual_dim=4, visual_cond=True, **fields
    )
    return {
        "transformer": given,
        "vae": hunyuan_vae(),
        "text_encoder": qwen_vl(),
        "tokenizer": tokenizer(length=512),
        "text_encoder_2": clip(max_position_embeddings=77),
        "tokenizer_2": tokenizer(start=True, length=77),
        "scheduler": flow(shift=5.0),
    }


def embedded_twice() -> dict[str, Any]:
    """A prompt that both encoders read already: the first cuts off more words than a short one has."""
    words: dict[str, Any] = {}
    for name in ("", "negative_"):
        words[f"{name}prompt_embeds_qwen"] = torch.randn(1, 8, 32)
        words[f"{name}prompt_embeds_clip"] = torch.randn(1, 32)
        words[f"{name}prompt_cu_seqlens"] = torch.tensor([0, 8], dtype=torch.int32)
    return {**STEPS, **words, "num_frames": 5, "height": SIDE, "width": SIDE}


@recipe("Kandinsky5T2VPipeline", "text to video")
def _kandinsky5() -> Made:
    return Made(components=kandinsky5(), call=embedded_twice())


@recipe("Kandinsky5I2VPipeline", "image to video")
def _kandinsky5_from_picture() -> Made:
    # Its first four frames of latents are given the mean of those after them.
    call = {**embedded_twice(), "image": picture(), "num_frames": 21}
    return Made(components=kandinsky5(), call=call)
