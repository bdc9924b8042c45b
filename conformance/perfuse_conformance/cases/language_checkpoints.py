"""Small random checkpoints of families whose text encoder is a language model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse_conformance.cases.checkpoint_parts import vae_config, write_json, write_model
from perfuse_conformance.cases.language_parts import write_language_model, write_language_tokenizer

__all__ = ["z_image"]


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
