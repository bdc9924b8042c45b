"""The models that the benchmarks run: the bundled one, and large ones with random weights.

A large checkpoint is written tensor by tensor, so that making it takes no more memory than its
largest tensor, and it is made once.
"""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sidebyside import say

from perfuse_conformance.cases.checkpoint_parts import write_word_pieces
from perfuse_conformance.cases.language_parts import write_gemma_tokenizer, write_language_tokenizer
from perfuse_conformance.checkpoints import (
    make_checkpoint,
    write_configs,
    write_json,
    write_tokenizer,
)

_SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_SD15_VAE: dict[str, Any] = {
    "sample_size": 512,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}
_SD15_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SDXL_TEXT_2: dict[str, Any] = {
    **_SD15_TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}
_SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
#: The width of Stable Diffusion 3 medium, with a quarter of its blocks; tables of positions for 512².
_TRANSFORMER: dict[str, Any] = {
    "sample_size": 64,
    "num_layers": 6,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 32,
    "dual_attention_layers": [],
    "qk_norm": None,
}
_PIXART: dict[str, Any] = {
    "sample_size": 128,
    "num_layers": 2,
    "attention_head_dim": 72,
    "num_attention_heads": 16,
    "cross_attention_dim": 1152,
}
_QWEN_IMAGE: dict[str, Any] = {
    "num_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "axes_dims_rope": [16, 56, 56],
}
#: Small tokenizers in place of the real ones, by class.
_TOKENIZERS: dict[str, Callable[[Path], int]] = {
    "CLIPTokenizer": write_tokenizer,
    "T5TokenizerFast": write_word_pieces,
    "GemmaTokenizerFast": write_gemma_tokenizer,
    "Qwen2Tokenizer": write_language_tokenizer,
}
#: So many numbers are drawn at a time.
_DRAWN = 2**24
_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def shapes(model: Path | None) -> Path:
    """The bundled model, or the one given in its place."""
    from perfuse.shapes import CHECKPOINT

    return model if model is not None else CHECKPOINT


def sd15(work: Path, *, quick: bool = False, seed: int = 0) -> Path:
    """A checkpoint of Stable Diffusion 1.5's sizes: 860 M, 123 M and 84 M parameters.

    Another seed gives another checkpoint of the same configs.
    """
    if quick:
        return middle(work, seed=seed)
    folder = work / ("sd15" if seed == 0 else f"sd15-{seed}")
    return _checkpoint(folder, _SD15_UNET, _SD15_VAE, _SD15_TEXT, seed=seed)


def sdxl(work: Path, *, quick: bool = False, stored: str = "float32") -> Path:
    """A checkpoint of Stable Diffusion XL's sizes: 2.57 G, 123 M, 695 M and 84 M parameters.

    With ``stored="float16"`` its files are those of the variant that is mostly downloaded.
    """
    if quick:
        return middle(work, stored=stored)
    vae = {**_SD15_VAE, "sample_size": 1024, "scaling_factor": 0.13025}
    index = {
        **_INDEX,
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    for absent in ("safety_checker", "requires_safety_checker"):
        del index[absent]
    folder = work / _stored_as("sdxl", stored)
    return _checkpoint(folder, _SDXL_UNET, vae, _SD15_TEXT, _SDXL_TEXT_2, index, stored=stored)


def middle(work: Path, *, seed: int = 0, stored: str = "float32") -> Path:
    """The same at less than half the width and depth: a UNet of 92 M parameters, 256×256 pictures."""
    unet = {**_SD15_UNET, "sample_size": 32, "block_out_channels": [128, 256, 512, 512]}
    unet |= {"layers_per_block": 1, "cross_attention_dim": 256}
    vae = {**_SD15_VAE, "sample_size": 256, "block_out_channels": [32, 64, 128, 128]}
    vae |= {"layers_per_block": 1}
    text = {**_SD15_TEXT, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    folder = work / _stored_as("middle" if seed == 0 else f"middle-{seed}", stored)
    text |= {"num_attention_heads": 4}
    return _checkpoint(folder, unet, vae, text, seed=seed, stored=stored)


def _stored_as(name: str, stored: str) -> str:
    return name if stored == "float32" else f"{name}-{stored}"


def transformer(work: Path, *, quick: bool = False, blocks: int = 6) -> Path:
    """Stable Diffusion 3's transformer with some of its 24 blocks, each of 0.1 G parameters.

    Its text encoders are tiny.
    """
    narrow = {"attention_head_dim": 16, "caption_projection_dim": 384} if quick else {}
    depth = "" if blocks == _TRANSFORMER["num_layers"] else f"-{blocks}"
    folder = work / f"transformer{depth}{'-quick' if quick else ''}"
    return _with_transformer(folder, "sd3", {**_TRANSFORMER, "num_layers": blocks, **narrow})


def pixart(work: Path, *, quick: bool = False) -> Path:
    """PixArt-Σ's transformer with 2 blocks of its 28, 45 M parameters; its text encoder is tiny."""
    narrow = {"attention_head_dim": 8, "cross_attention_dim": 128} if quick else {}
    folder = work / ("pixart-quick" if quick else "pixart")
    return _with_transformer(folder, "pixart-sigma", {**_PIXART, **narrow})


def qwen_image(work: Path, *, quick: bool = False) -> Path:
    """Qwen-Image's transformer with one block of its 60, 0.4 G parameters; its text encoder is tiny."""
    narrow = {"num_attention_heads": 1} if quick else {}
    folder = work / ("qwen-image-quick" if quick else "qwen-image")
    return _with_transformer(folder, "qwen-image", {**_QWEN_IMAGE, **narrow})


def in_gguf(folder: Path, kind: str) -> Path:
    """A GGUF file of a checkpoint's transformer, as llama.cpp's ``quantize`` writes it, made once.

    Args:
        folder: A checkpoint whose transformer's tensors have the same names in its authors' files.
        kind: Of the blocks: ``"Q8_0"``.
    """
    path = folder / f"transformer-{kind}.gguf"
    if path.is_file():
        return path
    import gguf
    from safetensors import safe_open

    say(f"writing {path.name}, once")
    code = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path.with_suffix(".part"), "qwen_image", use_temp_file=True)
    stored = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    with safe_open(stored, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            values = file.get_tensor(name)
            if values.ndim < 2 or values.shape[-1] % 32:
                writer.add_tensor(name, values)
            else:
                writer.add_tensor(name, gguf.quantize(values, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)
    return path


def _with_transformer(folder: Path, kind: str, config: Mapping[str, Any]) -> Path:
    """A small checkpoint of a kind with another transformer, of random weights."""
    if (folder / "written").is_file():
        return folder
    say(f"writing {folder.name}, once, with random weights")
    shutil.rmtree(folder, ignore_errors=True)
    make_checkpoint(folder, kind)
    whole = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    whole |= config
    write_json(folder / "transformer" / "config.json", whole)
    import torch

    from perfuse.models.registry import network

    with torch.device("meta"):
        state = network(whole["_class_name"]).from_config(whole).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    _write_random(folder / "transformer" / "diffusion_pytorch_model.safetensors", shapes, 0)
    (folder / "written").touch()
    return folder


def real(work: Path, name: str, *, quick: bool = False) -> Path:
    """A checkpoint of a real configuration, one of ``REAL``, in bfloat16; its tokenizers are small.

    With ``quick`` its transformer and its text encoders have two layers.
    """
    from perfuse import Checkpoint
    from perfuse.sources.configs_alone import ConfigsAlone, with_or_without_weights

    folder = work / (f"{name}-quick" if quick else name)
    if (folder / "written").is_file():
        return folder
    say(f"writing {folder.name}, once, with random weights")
    shutil.rmtree(folder, ignore_errors=True)
    write_configs(folder, name)
    for file in folder.glob("*/config.json") if quick else ():
        config = json.loads(file.read_text(encoding="utf-8"))
        counts = [key for key in ("num_layers", "num_hidden_layers") if key in config]
        write_json(file, {**config, **dict.fromkeys(counts, 2)})
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for part in (part for part in index if part.startswith("tokenizer")):
        _TOKENIZERS[index[part][1]](folder / part)
    source = with_or_without_weights(Checkpoint.open(folder))
    assert isinstance(source, ConfigsAlone)
    for number, (part, hollow) in enumerate(source.hollow.items()):
        shapes = {key: shape for key, (_, shape) in hollow.shapes.items()}
        file = "model" if index[part][0] == "transformers" else "diffusion_pytorch_model"
        path = folder / part / f"{file}.safetensors"
        _write_random(path, shapes, number, dtype="bfloat16")
    (folder / "written").touch()
    return folder


def exported(checkpoint: Path, to: str, work: Path, precision: str = "float32") -> Path:
    """A large checkpoint as an artifact: what `export_memory` wrote last, or else exported now."""
    name = f"{checkpoint.name}-{to}"
    folder = work / (name if precision == "float32" else f"{name}-{precision}")
    if not (folder / "perfuse.json").is_file():
        from perfuse import DiffusionPipeline

        say(f"exporting {checkpoint.name} to {to} in {precision}")
        DiffusionPipeline.from_pretrained(checkpoint, precision=precision).export(folder, to=to)
    return folder


def _checkpoint(
    folder: Path,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    text: Mapping[str, Any],
    text_2: Mapping[str, Any] | None = None,
    index: Mapping[str, Any] = _INDEX,
    *,
    seed: int = 0,
    stored: str = "float32",
) -> Path:
    if (folder / "model_index.json").is_file():
        return folder
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from perfuse.models import AutoencoderKL, UNet2DConditionModel

    say(f"writing {folder.name}, once, with random weights")
    shutil.rmtree(folder, ignore_errors=True)
    with torch.device("meta"):
        models = {
            "unet": (UNet2DConditionModel(**unet), "diffusion_pytorch_model.safetensors"),
            "vae": (AutoencoderKL(**vae), "diffusion_pytorch_model.safetensors"),
            "text_encoder": (CLIPTextModel(CLIPTextConfig(**text)), "model.safetensors"),
        }
        if text_2 is not None:
            projected = CLIPTextModelWithProjection(CLIPTextConfig(**text_2))
            models["text_encoder_2"] = (projected, "model.safetensors")
    for number, (name, (model, file)) in enumerate(models.items()):
        config = model.config.to_dict()
        write_json(folder / name / "config.json", config)
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        if name == "text_encoder":  # Transformers before 5 reads no other names
            shapes = {
                f"text_model.{key.removeprefix('text_model.')}": shapes[key] for key in shapes
            }
        _write_random(folder / name / file, shapes, seed + number, dtype=stored)
    for name in (name for name in index if name.startswith("tokenizer")):
        write_tokenizer(folder / name)
    write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULE)
    write_json(folder / "model_index.json", index)  # last: its presence says that all is there
    return folder


def _write_random(
    path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, *, dtype: str = "float32"
) -> None:
    """A safetensors file of random tensors, in one of three dtypes, at a scale that keeps signals."""
    spelled, size = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + size * int(np.prod(shape))
        header[name] = {"dtype": spelled, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            scale, middle = np.float32(0.1), np.float32(0)
            if len(shape) > 1:
                scale = np.float32(1 / np.prod(shape[1:]) ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                middle = np.float32(1)
            left = int(np.prod(shape))
            while left:
                drawn = rng.standard_normal(min(left, _DRAWN), dtype=np.float32) * scale + middle
                left -= drawn.size
                if dtype == "bfloat16":  # the upper half of a float32, cut off
                    (drawn.view("<u4") >> 16).astype("<u2").tofile(file)
                else:
                    drawn.astype(f"<f{size}", copy=False).tofile(file)
