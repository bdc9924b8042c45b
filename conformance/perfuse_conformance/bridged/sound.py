"""Text to sound."""

from typing import Any

import torch

from perfuse_conformance.bridged.parts import PROMPT, t5, tokenizer, unet, vae
from perfuse_conformance.bridged.recipe import Made, recipe

CALL = {"prompt": PROMPT, "num_inference_steps": 2, "generator": torch.Generator}


def clap() -> Any:
    """CLAP's text encoder."""
    import transformers

    config = transformers.ClapTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        projection_dim=16,
        vocab_size=32,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    return transformers.ClapTextModelWithProjection(config)


def vocoder() -> Any:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=16000,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
            normalize_before=False,
        )
    )


@recipe("AudioLDMPipeline", "sound")
def _audio() -> Made:
    from diffusers import DDIMScheduler

    given = unet(
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
        cross_attention_dim=[32, 64],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    )
    kept = {
        "vae": vae(in_channels=1, out_channels=1),
        "text_encoder": clap(),
        "tokenizer": tokenizer(start=True),
        "unet": given,
        "scheduler": DDIMScheduler(beta_start=0.0015, beta_end=0.0195, clip_sample=False),
        "vocoder": vocoder(),
    }
    return Made(components=kept, call={**CALL, "audio_length_in_s": 0.005})


@recipe("StableAudioPipeline", "sound")
def _stable_audio() -> Made:
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
    )
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    given = StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=2,
        attention_head_dim=4,
        num_key_value_attention_heads=2,
        num_attention_heads=4,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    autoencoder = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    kept = {
        "vae": autoencoder,
        "text_encoder": t5(),
        "projection_model": StableAudioProjectionModel(
            text_encoder_dim=32, conditioning_dim=4, min_value=0, max_value=32
        ),
        "tokenizer": tokenizer(),
        "transformer": given,
        "scheduler": EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0),
    }
    return Made(components=kept, call={**CALL, "audio_end_in_s": 1.5})
