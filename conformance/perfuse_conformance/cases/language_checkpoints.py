"""Small random checkpoints of families whose text encoder is a language model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse_conformance.cases.checkpoint_parts import (
    edit_json,
    vae_config,
    write_json,
    write_model,
)
from perfuse_conformance.cases.language_parts import (
    write_gemma_tokenizer,
    write_language_model,
    write_language_tokenizer,
    write_qwen3_vl,
    write_qwen_vl,
    write_qwen_vl_processor,
    write_vision_processor,
)

__all__ = [
    "cogview4",
    "klein",
    "klein_distilled",
    "lumina2",
    "qwen_edit",
    "qwen_edit_plus",
    "qwen_image",
    "qwen_image_21",
    "sana",
    "sana_sprint",
    "z_image",
]


def z_image(folder: Path, seed: int) -> Path:
    """Z-Image's layout. Pictures are 16×16 (latents 8×8), captions 32 tokens or more."""
    transformer = {
        "in_channels": 4,
        "dim": 48,
        "n_layers": 2,
        "n_refiner_layers": 2,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 32,
        "axes_dims": [8, 8, 8],
        "axes_lens": [1024, 64, 64],
        "sample_size": 8,
    }
    write_model(folder / "transformer", "ZImageTransformer2DModel", transformer, seed)
    vae = vae_config(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False)
    vae["use_post_quant_conv"] = False
    write_model(folder / "vae", "AutoencoderKL", vae, seed + 1)
    size = write_language_tokenizer(folder / "tokenizer")
    write_language_model(folder / "text_encoder", "Qwen3", "ForCausalLM", size, seed + 2)
    _finish(folder, "ZImagePipeline", "ZImageTransformer2DModel", shift=3.0)
    return folder


def klein(folder: Path, seed: int, *, distilled: bool = False) -> Path:
    """FLUX.2 klein's layout, of a base model. Pictures are 16×16, four by four pixels a token."""
    transformer = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "axes_dims_rope": [4, 4, 4, 4],
        "guidance_embeds": False,
        "sample_size": 4,
    }
    write_model(folder / "transformer", "Flux2Transformer2DModel", transformer, seed)
    vae = {"latent_channels": 4, "decoder_block_out_channels": [24, 32]}
    write_model(folder / "vae", "AutoencoderKLFlux2", vae_config(**vae), seed + 1)
    size = write_language_tokenizer(folder / "tokenizer")
    text = {"num_hidden_layers": 28, "hidden_size": 16, "intermediate_size": 24, "head_dim": 4}
    write_language_model(folder / "text_encoder", "Qwen3", "ForCausalLM", size, seed + 2, **text)
    _finish(
        folder,
        "Flux2KleinPipeline",
        "Flux2Transformer2DModel",
        vae="AutoencoderKLFlux2",
        index={"is_distilled": distilled},
        use_dynamic_shifting=True,
        shift=3.0,
    )
    return folder


def klein_distilled(folder: Path, seed: int) -> Path:
    return klein(folder, seed, distilled=True)


def qwen_image(folder: Path, seed: int) -> Path:
    """Qwen-Image's layout. Pictures are 16×16, four by four pixels a token."""
    return _qwen(folder, seed, "QwenImagePipeline")


def qwen_edit(folder: Path, seed: int) -> Path:
    """Qwen-Image-Edit's layout. Pictures have about the area of 64×64."""
    write_vision_processor(folder / "processor")
    index = {"processor": ["transformers", "Qwen2VLProcessor"]}
    return _qwen(folder, seed, "QwenImageEditPipeline", index, eyes=True, sample_size=32)


def qwen_edit_plus(folder: Path, seed: int) -> Path:
    """The same for several pictures, whose tokens are told that no noise is in them (Edit-2511)."""
    write_vision_processor(folder / "processor")
    index = {"processor": ["transformers", "Qwen2VLProcessor"]}
    fields = {"sample_size": 32, "zero_cond_t": True}
    return _qwen(folder, seed, "QwenImageEditPlusPipeline", index, eyes=True, **fields)


def _qwen(
    folder: Path,
    seed: int,
    class_name: str,
    index: Mapping[str, Any] | None = None,
    *,
    eyes: bool = False,
    **fields: Any,
) -> Path:
    transformer = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": [4, 4, 8],
        "sample_size": 8,
        **fields,
    }
    write_model(folder / "transformer", "QwenImageTransformer2DModel", transformer, seed)
    vae = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
        "latents_mean": [-0.7, 0.1, 0.4, -0.2],
        "latents_std": [2.8, 1.4, 1.9, 0.8],
    }
    write_model(folder / "vae", "AutoencoderKLQwenImage", vae, seed + 1)
    time = {"encoder.down_blocks.1": (8, 8, 3), "decoder.up_blocks.0.upsamplers.0": (32, 16, 3)}
    _add_time(folder / "vae" / "diffusion_pytorch_model.safetensors", time, seed + 1)
    size = write_language_tokenizer(folder / "tokenizer", template=False, eyes=eyes)
    write_qwen_vl(folder / "text_encoder", size, seed + 2, eyes=eyes)
    _finish(
        folder,
        class_name,
        "QwenImageTransformer2DModel",
        vae="AutoencoderKLQwenImage",
        text="Qwen2_5_VLForConditionalGeneration",
        index=index,
        use_dynamic_shifting=True,
        shift_terminal=0.02,
    )
    return folder


def qwen_image_21(folder: Path, seed: int) -> Path:
    """Qwen-Image 2.1's layout. Pictures are 16×16, of four channels; four by four pixels a token."""
    transformer = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "context_in_dim": 32,
        "axes_dims_rope": [4, 4, 8],
        "sample_size": 4,
    }
    write_model(folder / "transformer", "QwenImage21Transformer2DModel", transformer, seed)
    vae = {
        "base_dim": 8,
        "decoder_base_dim": 12,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "latents_mean": [-0.7, 0.1, 0.4, -0.2],
        "latents_std": [2.8, 1.4, 1.9, 0.8],
    }
    write_model(folder / "vae", "AutoencoderKLQwenImage21", vae, seed + 1)
    time = {
        "encoder.down_blocks.1.downsampler": (16, 16, 1),
        "decoder.up_blocks.0.upsampler": (48, 24, 1),
    }
    _add_time(folder / "vae" / "diffusion_pytorch_model.safetensors", time, seed + 1)
    size = write_qwen_vl_processor(folder / "processor")
    write_qwen3_vl(folder / "text_encoder", size, seed + 2)
    _finish(
        folder,
        "QwenImage21Pipeline",
        "QwenImage21Transformer2DModel",
        vae="AutoencoderKLQwenImage21",
        text="Qwen3VLForConditionalGeneration",
        use_dynamic_shifting=True,
        shift_terminal=0.02,
    )
    edit_json(
        folder / "model_index.json",
        processor=["transformers", "Qwen3VLProcessor"],
        tokenizer=...,
        sample_sigmas=None,
    )
    return folder


def sana(folder: Path, seed: int, *, index: str = "SanaPipeline", **fields: Any) -> Path:
    """Sana's layout. Pictures are 16×16, two by two pixels a latent.

    Linear attention jumps where the last number of a query that is above zero falls to it. Heads have as
    many channels as make that rare, in the real model 32; with 8 it was between any two engines.
    """
    transformer = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 32,
        "cross_attention_dim": 64,
        "caption_channels": 32,
        "sample_size": 8,
        **fields,
    }
    write_model(folder / "transformer", "SanaTransformer2DModel", transformer, seed)
    half = {"block_types": ["ResBlock", "EfficientViTBlock"], "block_out_channels": [16, 32]}
    half |= {"layers_per_block": [1, 1], "qkv_multiscales": [[], [5]]}
    vae: dict[str, Any] = {
        f"{name}_{field}": value for name in ("encoder", "decoder") for field, value in half.items()
    }
    vae |= {"latent_channels": 4, "attention_head_dim": 16, "scaling_factor": 0.41407}
    vae |= {"downsample_block_type": "Conv", "upsample_block_type": "interpolate"}
    write_model(folder / "vae", "AutoencoderDC", vae, seed + 1)
    size = write_gemma_tokenizer(folder / "tokenizer")
    text = {"query_pre_attn_scalar": 8, "max_position_embeddings": 2048, "sliding_window": 2048}
    write_language_model(folder / "text_encoder", "Gemma2", "Model", size, seed + 2, **text)
    denoiser = "SanaTransformer2DModel"
    _finish(folder, index, denoiser, vae="AutoencoderDC", text="Gemma2Model")
    _schedule(
        folder,
        "DPMSolverMultistepScheduler",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
    )
    edit_json(folder / "model_index.json", tokenizer=["transformers", "GemmaTokenizerFast"])
    return folder


def sana_sprint(folder: Path, seed: int) -> Path:
    """Sana-Sprint's: told the guidance scale, with norms of queries and keys, in angles."""
    told = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    sana(folder, seed, index="SanaSprintPipeline", **told)
    _schedule(folder, "SCMScheduler", sigma_data=0.5)
    return folder


def _schedule(folder: Path, name: str, **config: Any) -> None:
    """Another scheduler than the usual one."""
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": name, **config})
    edit_json(folder / "model_index.json", scheduler=["diffusers", name])


def lumina2(folder: Path, seed: int) -> Path:
    """Lumina 2's layout. Pictures are 16×16; two heads of queries share one of keys."""
    transformer = {
        "in_channels": 4,
        "hidden_size": 48,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 32,
        "cap_feat_dim": 32,
        "axes_dim_rope": [8, 8, 8],
        "axes_lens": [300, 64, 64],
        "sample_size": 8,
    }
    write_model(folder / "transformer", "Lumina2Transformer2DModel", transformer, seed)
    vae = vae_config(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False)
    vae["use_post_quant_conv"] = False
    write_model(folder / "vae", "AutoencoderKL", vae, seed + 1)
    size = write_gemma_tokenizer(folder / "tokenizer")
    text = {"query_pre_attn_scalar": 8, "sliding_window": 512}
    write_language_model(folder / "text_encoder", "Gemma2", "Model", size, seed + 2, **text)
    _finish(folder, "Lumina2Pipeline", "Lumina2Transformer2DModel", text="Gemma2Model", shift=6.0)
    edit_json(folder / "model_index.json", tokenizer=["transformers", "GemmaTokenizerFast"])
    return folder


def cogview4(folder: Path, seed: int) -> Path:
    """CogView 4's layout. Pictures are 16×16; the tokenizer is Gemma's, which fills up on the left, too."""
    transformer = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "text_embed_dim": 32,
        "time_embed_dim": 16,
        "condition_dim": 6,
        "rope_axes_dim": [16, 16],
        "sample_size": 8,
    }
    write_model(folder / "transformer", "CogView4Transformer2DModel", transformer, seed)
    write_model(folder / "vae", "AutoencoderKL", vae_config(), seed + 1)
    size = write_gemma_tokenizer(folder / "tokenizer")
    text = {"max_position_embeddings": 2048, "pad_token_id": 0}
    write_language_model(folder / "text_encoder", "Glm", "Model", size, seed + 2, **text)
    _finish(
        folder,
        "CogView4Pipeline",
        "CogView4Transformer2DModel",
        text="GlmModel",
        use_dynamic_shifting=True,
        time_shift_type="linear",
        base_shift=0.25,
        max_shift=0.75,
    )
    edit_json(folder / "model_index.json", tokenizer=["transformers", "GemmaTokenizerFast"])
    return folder


def _add_time(path: Path, layers: Mapping[str, tuple[int, int, int]], seed: int) -> None:
    """Add the layers that halve and double time, which are there in every checkpoint.

    Args:
        path: The autoencoder's file.
        layers: What has one, to its channels, those that it takes, and how many frames it sees; for
            one frame its kernel has no axis of time.
        seed: Of the weights.
    """
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator("cpu").manual_seed(seed)
    weights = load_file(path)
    for name, (outputs, inputs, frames) in layers.items():
        kernel = (frames, 1, 1) if frames > 1 else (1, 1)
        shapes: dict[str, tuple[int, ...]] = {"weight": (outputs, inputs, *kernel)}
        shapes["bias"] = (outputs,)
        for last, shape in shapes.items():
            drawn = torch.randn(shape, generator=generator)
            weights[f"{name}.time_conv.{last}"] = drawn / (3 * inputs) ** 0.5
    save_file(weights, path, metadata={"format": "pt"})


def _finish(
    folder: Path,
    class_name: str,
    denoiser: str,
    *,
    vae: str = "AutoencoderKL",
    text: str = "Qwen3ForCausalLM",
    index: Mapping[str, Any] | None = None,
    **scheduler: Any,
) -> None:
    """The scheduler and the index of a checkpoint whose models are written."""
    name = "FlowMatchEulerDiscreteScheduler"
    config = {"_class_name": name, "num_train_timesteps": 1000, **scheduler}
    write_json(folder / "scheduler" / "scheduler_config.json", config)
    entries = {
        "_class_name": class_name,
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", name],
        "text_encoder": ["transformers", text],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", denoiser],
        "vae": ["diffusers", vae],
        **(index or {}),
    }
    write_json(folder / "model_index.json", entries)
