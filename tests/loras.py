"""Random LoRAs for a small checkpoint, written in the layouts that they are published in."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

__all__ = ["LAYOUTS", "factors", "layers_of", "write"]

Array = np.ndarray[Any, np.dtype[Any]]
#: Part and layer to its factors by name: ``down``, ``up``, ``alpha`` …
Factors = dict[tuple[str, str], dict[str, Array]]

ATTENTION = r"(to_q|to_k|to_v|to_out\.0|q_proj|k_proj|v_proj|out_proj)$"
EVERYTHING = r"(to_\w|to_out\.0|proj(_in|_out)?|conv\w*|linear_\d|net\.2|fc\d|\w_proj)$"


def layers_of(module: Any, pattern: str = ATTENTION) -> dict[str, tuple[int, ...]]:
    """A module's layers whose names match, and their weights' shapes."""
    return {
        name: tuple(layer.weight.shape)
        for name, layer in module.named_modules()
        if re.search(pattern, name) and getattr(layer, "weight", torch.empty(0)).ndim > 1
    }


def factors(
    pipe: Any,
    *,
    seed: int = 0,
    rank: int = 2,
    size: float = 0.2,
    pattern: str = ATTENTION,
    parts: Iterable[str] = ("unet", "text_encoder", "text_encoder_2"),
    alphas: tuple[float, ...] | None = None,
) -> Factors:
    """Random factors for the layers of a Diffusers pipeline.

    Of kohya's layout, Diffusers reads one alpha for all layers; ours differ with ``alphas``.
    """
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        return (size * random.standard_normal(shape)).astype(np.float32)

    found: Factors = {}
    for part in parts:
        module = getattr(pipe, part, None)
        for layer, shape in (layers_of(module, pattern) if module is not None else {}).items():
            found[part, layer] = {
                "down": draw(rank, *shape[1:]),
                "up": draw(shape[0], rank, *(1 for _ in shape[2:])),
                "alpha": np.float32(rank * (0.5 if alphas is None else random.choice(alphas))),
            }
    return found


def _peft(part: str, layer: str, one: Mapping[str, Array]) -> dict[str, Array]:
    scale = one["alpha"] / len(one["down"])  # which PEFT's layout has no place for
    names = {f"{part}.{layer}.lora_A.weight": one["down"] * scale}
    return {**names, f"{part}.{layer}.lora_B.weight": one["up"]}


def _diffusers(part: str, layer: str, one: Mapping[str, Array]) -> dict[str, Array]:
    word = "lora" if part == "unet" else "lora_linear_layer"
    scale = one["alpha"] / len(one["down"])
    return {
        f"{part}.{layer}.{word}.down.weight": one["down"] * scale,
        f"{part}.{layer}.{word}.up.weight": one["up"],
    }


def _processors(part: str, layer: str, one: Mapping[str, Array]) -> dict[str, Array]:
    old = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    place, _, last = layer.removesuffix(".0").rpartition(".")
    inner = ".processor" if part == "unet" else ""
    name = f"{part}.{place}{inner}.{old.get(last, last)}_lora"
    scale = one["alpha"] / len(one["down"])
    return {f"{name}.down.weight": one["down"] * scale, f"{name}.up.weight": one["up"]}


_KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}


def _kohya(
    part: str, layer: str, one: Mapping[str, Array], *, second: str = "te"
) -> dict[str, Array]:
    if part == "unet":
        start = "lora_unet"
    else:
        start = {"text_encoder": f"lora_{second}", "text_encoder_2": "lora_te2"}[part]
        layer = layer if layer.startswith("text_") else f"text_model.{layer}"
    name = f"{start}_{layer.replace('.', '_')}"
    return {f"{name}.{_KOHYA.get(factor, factor)}": array for factor, array in one.items()}


def _kohya_xl(part: str, layer: str, one: Mapping[str, Array]) -> dict[str, Array]:
    """With the UNet's blocks as the original file numbers them."""
    return _kohya(part, _original(layer) if part == "unet" else layer, one, second="te1")


_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")
_INNER = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_PLAIN = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
#: Residual blocks of each level of the small SDXL model.
_PER_BLOCK = 1
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}


def _original(layer: str) -> str:
    """A layer's name in the original file, of the small SDXL model's UNet."""
    per_block = _PER_BLOCK
    if layer in _PLAIN:
        return _PLAIN[layer]
    if layer.startswith("mid_block."):
        _, kind, number, *rest = layer.split(".")
        start = f"middle_block.{_MIDDLE[f'{kind}.{number}']}"
    else:
        match = _BLOCK.match(layer)
        assert match is not None, layer
        way, block, kind, number = match[1], int(match[2]), match[3], int(match[4])
        rest = [one for one in layer[match.end() :].split(".") if one]
        inner = {"resnets": "0", "attentions": "1"}.get(kind)
        if way == "down":
            first = 1 + block * (per_block + 1)
            if inner is None:
                return f"input_blocks.{first + per_block}.0.op"
            start = f"input_blocks.{first + number}.{inner}"
        else:
            first = block * (per_block + 1)
            if inner is None:
                return f"output_blocks.{first + per_block}.2.conv"  # behind an attention
            start = f"output_blocks.{first + number}.{inner}"
    last = ".".join(rest)
    return f"{start}.{_INNER.get(last, last)}"


Layout = Callable[[str, str, Mapping[str, Array]], dict[str, Array]]
LAYOUTS: Mapping[str, Layout] = {
    "peft": _peft,
    "diffusers": _diffusers,
    "processors": _processors,
    "kohya": _kohya,
    "kohya-xl": _kohya_xl,
}


def write(path: Path, found: Factors, layout: str) -> Path:
    """Write factors in a layout."""
    tensors: dict[str, Array] = {}
    for (part, layer), one in found.items():
        tensors |= LAYOUTS[layout](part, layer, one)
    save_file({name: np.asarray(array) for name, array in tensors.items()}, path)
    return path
