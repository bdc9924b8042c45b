"""Text to sound."""

from typing import Any

import torch

from perfuse_conformance.bridged.parts import PROMPT, t5, tokenizer, unet, vae
from perfuse_conformance.bridged.recipe import Made, recipe

CALL = {"prompt": PROMPT, "num_inference_steps": 2, "generator": torch.Generator}
SHORT = {**CALL, "audio_length_in_s": 0.005}


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


def clap_of_both() -> Any:
    """CLAP with its encoders of text and of sound."""
    import transformers

    listening = transformers.ClapAudioConfig(
        spec_size=8,
        window_size=4,
        num_mel_bins=8,
        patch_size=2,
        patch_stride=2,
        patch_embeds_hidden_size=16,
        hidden_size=16,
        depths=[1, 1],
        num_attention_heads=[1, 1],
        num_hidden_layers=2,
        projection_dim=16,
    )
    config = transformers.ClapConfig(
        text_config=clap().config, audio_config=listening, projection_dim=16
    )
    return transformers.ClapModel(config)


def sound_unet(**fields: Any) -> Any:
    """A UNet that is given the text's embedding as a class."""
    return unet(
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
        cross_attention_dim=[32, 64],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        **fields,
    )


def ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=0.0015, beta_end=0.0195, clip_sample=False)


@recipe("AudioLDMPipeline", "sound")
def _audio() -> Made:
    kept = {
        "vae": vae(in_channels=1, out_channels=1),
        "text_encoder": clap(),
        "tokenizer": tokenizer(start=True),
        "unet": sound_unet(),
        "scheduler": ddim(),
        "vocoder": vocoder(),
    }
    return Made(components=kept, call=SHORT)


@recipe("AudioLDM2Pipeline", "sound")
def _audio_of_two() -> Made:
    from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel
    from transformers import GPT2Config, GPT2LMHeadModel

    speaking = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_ctx=64, vocab_size=32, n_positions=64)
    speaking.max_new_tokens = 4
    given = AudioLDM2UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        # In each block: itself, what the language model says, what T5 says.
        cross_attention_dim=[[None, 16, 32]] * 2,
        transformer_layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    kept = {
        "vae": vae(in_channels=1, out_channels=1),
        "text_encoder": clap_of_both(),
        "text_encoder_2": t5(),
        "projection_model": AudioLDM2ProjectionModel(16, 32, 16),
        "language_model": GPT2LMHeadModel(speaking),
        "tokenizer": tokenizer(start=True),
        "tokenizer_2": tokenizer(),
        "feature_extractor": None,
        "unet": given,
        "scheduler": ddim(),
        "vocoder": vocoder(),
    }
    # Words that a tokenizer of no known class reads are those of speech to the pipeline.
    return Made(components=kept, call={**SHORT, "transcription": [PROMPT]})


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
