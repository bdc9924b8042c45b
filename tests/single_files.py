"""Single-file checkpoints for tests: Diffusers' names turned back into CompVis' and OpenCLIP's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KINDS = ("sd1", "sd2", "sdxl")

_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_UNET = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_names(names: list[str], layers: int) -> dict[str, str]:
    """Diffusers' name of each tensor to the original one, for a UNet of so many layers a block."""
    attends = {
        name.split(".")[1] for name in names if name.startswith("up_blocks") and "attn" in name
    }
    found = {}
    for name in names:
        place = next((place for place in _UNET if name.startswith(place)), None)
        if place is not None:
            rest = name.removeprefix(place)
            found[name] = _UNET[place] + _resnet(rest)
            continue
        side, block, kind, number, *rest = name.split(".")
        index = int(block) * (layers + 1)
        tail = ".".join(rest)
        if kind == "downsamplers":
            found[name] = f"input_blocks.{1 + index + layers}.0.op.{rest[-1]}"
        elif kind == "upsamplers":
            last = 2 if block in attends else 1
            found[name] = f"output_blocks.{index + layers}.{last}.conv.{rest[-1]}"
        else:
            first = f"input_blocks.{1 + index + int(number)}"
            if side == "up_blocks":
                first = f"output_blocks.{index + int(number)}"
            found[name] = f"{first}.{0 if kind == 'resnets' else 1}.{_resnet(tail)}"
    return found


def _resnet(name: str) -> str:
    old = next((old for old in _RESNET if name.startswith(old)), None)
    return name if old is None else _RESNET[old] + name.removeprefix(old)


def vae_names(names: list[str], levels: int) -> dict[str, str]:
    """Diffusers' name of each tensor of an autoencoder to the original one."""
    found = {}
    for name in names:
        part, *rest = name.split(".")
        if part in ("quant_conv", "post_quant_conv"):
            found[name] = name
        elif rest[0] == "conv_norm_out":
            found[name] = f"{part}.norm_out.{rest[1]}"
        elif rest[0] in ("conv_in", "conv_out"):
            found[name] = name
        elif rest[0] == "mid_block" and rest[1] == "resnets":
            found[name] = f"{part}.mid.block_{int(rest[2]) + 1}.{_shortcut(rest[3:])}"
        elif rest[0] == "mid_block":
            inner = ".".join(rest[3:-1])
            found[name] = f"{part}.mid.attn_1.{_VAE_ATTENTION[inner]}.{rest[-1]}"
        else:
            way, level = (
                ("down", int(rest[1])) if part == "encoder" else ("up", levels - 1 - int(rest[1]))
            )
            kind = {
                "resnets": f"block.{rest[3]}",
                "downsamplers": "downsample",
                "upsamplers": "upsample",
            }
            found[name] = f"{part}.{way}.{level}.{kind[rest[2]]}.{_shortcut(rest[4:])}"
    return found


def _shortcut(rest: list[str]) -> str:
    return ".".join(rest).replace("conv_shortcut", "nin_shortcut")


def open_clip(state: Mapping[str, Any], join: Callable[[list[Any]], Any]) -> dict[str, Any]:
    """A text encoder's tensors under OpenCLIP's names; ``join`` stacks query, key and value."""
    found: dict[str, Any] = {}
    for whole, tensor in state.items():
        name = whole.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif name == "embeddings.token_embedding.weight":
            found["token_embedding.weight"] = tensor
        elif name == "embeddings.position_embedding.weight":
            found["positional_embedding"] = tensor
        elif name.startswith("final_layer_norm."):
            found[name.replace("final_layer_norm", "ln_final")] = tensor
        elif ".self_attn.q_proj." in name:
            others = [state[whole.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            layer, last = name.split(".")[2], name.split(".")[-1]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{last}"] = join(others)
        elif ".k_proj." not in name and ".v_proj." not in name:
            _, _, layer, *inner = name.split(".")
            found[f"transformer.resblocks.{layer}.{_CLIP['.'.join(inner[:-1])]}.{inner[-1]}"] = (
                tensor
            )
    return found


def make_folder(folder: Path, kind: str) -> Path:
    """A small random checkpoint whose heads and groups are as in the real models."""
    from perfuse.models import AutoencoderKL, UNet2DConditionModel
    from perfuse_conformance.checkpoints import (
        make_checkpoint,
        randomise,
        unet_config,
        vae_config,
        write_tokenizer,
    )

    make_checkpoint(folder, kind)
    linear = kind != "sd1"
    widths = [64, 128] if linear else [32, 64]
    fields = {
        "block_out_channels": widths,
        "norm_num_groups": 32,
        "cross_attention_dim": 64 + 128 if kind == "sdxl" else 64,
        "attention_head_dim": [1, 2] if linear else 8,
        "use_linear_projection": linear,
    }
    if kind == "sdxl":
        fields |= {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 128 + 6 * 256,
        }
    randomise(UNet2DConditionModel(**unet_config(**fields))).save_pretrained(folder / "unet")
    scale = 0.13025 if kind == "sdxl" else 0.18215
    vae = vae_config(block_out_channels=[32, 64], norm_num_groups=32, scaling_factor=scale)
    randomise(AutoencoderKL(**vae), 1).save_pretrained(folder / "vae")
    for name, width in (("text_encoder", 64), ("text_encoder_2", 128)):
        if (folder / name).is_dir():
            _write_text_encoder(folder / name, width)
    if kind == "sd2":
        write_tokenizer(folder / "tokenizer", pad_token="!")
    return folder


def _write_text_encoder(folder: Path, width: int) -> None:
    import json

    import transformers

    from perfuse_conformance.checkpoints import randomise

    said = json.loads((folder / "config.json").read_text("utf-8"))
    config = transformers.CLIPTextConfig(
        vocab_size=said["vocab_size"],
        hidden_size=width,
        intermediate_size=96,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        hidden_act=said["hidden_act"],
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    model = getattr(transformers, said["architectures"][0])(config)
    randomise(model, len(folder.name)).save_pretrained(folder)


def original_tensors(folder: Path, kind: str) -> dict[str, Any]:
    """The tensors of a checkpoint of ``make_folder`` under the original names."""
    import torch
    from safetensors.torch import load_file

    def of(name: str, file: str = "model") -> dict[str, Any]:
        return load_file(folder / name / f"{file}.safetensors")

    unet, vae = (of(name, "diffusion_pytorch_model") for name in ("unet", "vae"))
    names = unet_names(list(unet), 1)
    found = {f"model.diffusion_model.{names[name]}": tensor for name, tensor in unet.items()}
    names = vae_names(list(vae), 2)
    for name, tensor in vae.items():
        conv = ".mid.attn_1." in names[name] and tensor.ndim == 2
        found[f"first_stage_model.{names[name]}"] = tensor[:, :, None, None] if conv else tensor
    text = {
        name if name.startswith("text") else f"text_model.{name}": tensor
        for name, tensor in of("text_encoder").items()
    }
    if kind == "sd2":
        places = {"cond_stage_model.model.": open_clip(text, torch.cat)}
    elif kind == "sd1":
        places = {"cond_stage_model.transformer.": text}
    else:
        places = {
            "conditioner.embedders.0.transformer.": text,
            "conditioner.embedders.1.model.": open_clip(of("text_encoder_2"), torch.cat),
        }
    for prefix, tensors in places.items():
        found |= {prefix + name: tensor for name, tensor in tensors.items()}
    # What training left in such files, and no model reads.
    found["alphas_cumprod"] = torch.zeros(1000)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def write_single_file(folder: Path, kind: str, path: Path, **metadata: str) -> Path:
    """A checkpoint of ``make_folder`` as one safetensors file."""
    from safetensors.torch import save_file

    save_file(original_tensors(folder, kind), path, metadata={"format": "pt", **metadata})
    return path
