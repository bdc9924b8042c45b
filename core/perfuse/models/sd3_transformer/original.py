"""Stable Diffusion 3's transformer as Stability AI's files hold it, and as LoRAs name its layers."""

import math
from collections.abc import Iterable
from typing import Any

from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.models.original_names import (
    Table,
    aliases_of,
    blocks,
    first_axis,
    stacked,
    swapped,
    views_of,
)

__all__ = ["aliases", "original"]

_BLOCK, _PICTURE, _TEXT = (
    "transformer_blocks.{}",
    "joint_blocks.{}.x_block",
    "joint_blocks.{}.context_block",
)
_TOLD = "time_text_embed"

_LAYERS: Table = {
    "pos_embed": "pos_embed.pos_embed",
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": f"{_TOLD}.timestep_embedder.linear_1",
    "t_embedder.mlp.2": f"{_TOLD}.timestep_embedder.linear_2",
    "y_embedder.mlp.0": f"{_TOLD}.text_embedder.linear_1",
    "y_embedder.mlp.2": f"{_TOLD}.text_embedder.linear_2",
    f"{_PICTURE}.adaLN_modulation.1": f"{_BLOCK}.norm1.linear",
    f"{_PICTURE}.attn.qkv": stacked(f"{_BLOCK}.attn", "to_q", "to_k", "to_v"),
    f"{_PICTURE}.attn.ln_q": f"{_BLOCK}.attn.norm_q",
    f"{_PICTURE}.attn.ln_k": f"{_BLOCK}.attn.norm_k",
    f"{_PICTURE}.attn.proj": f"{_BLOCK}.attn.to_out.0",
    f"{_PICTURE}.attn2.qkv": stacked(f"{_BLOCK}.attn2", "to_q", "to_k", "to_v"),
    f"{_PICTURE}.attn2.ln_q": f"{_BLOCK}.attn2.norm_q",
    f"{_PICTURE}.attn2.ln_k": f"{_BLOCK}.attn2.norm_k",
    f"{_PICTURE}.attn2.proj": f"{_BLOCK}.attn2.to_out.0",
    f"{_PICTURE}.mlp.fc1": f"{_BLOCK}.ff.net.0.proj",
    f"{_PICTURE}.mlp.fc2": f"{_BLOCK}.ff.net.2",
    f"{_TEXT}.adaLN_modulation.1": f"{_BLOCK}.norm1_context.linear",
    f"{_TEXT}.attn.qkv": stacked(f"{_BLOCK}.attn", "add_q_proj", "add_k_proj", "add_v_proj"),
    f"{_TEXT}.attn.ln_q": f"{_BLOCK}.attn.norm_added_q",
    f"{_TEXT}.attn.ln_k": f"{_BLOCK}.attn.norm_added_k",
    f"{_TEXT}.attn.proj": f"{_BLOCK}.attn.to_add_out",
    f"{_TEXT}.mlp.fc1": f"{_BLOCK}.ff_context.net.0.proj",
    f"{_TEXT}.mlp.fc2": f"{_BLOCK}.ff_context.net.2",
    "final_layer.adaLN_modulation.1": swapped("norm_out.linear"),
    "final_layer.linear": "proj_out",
}
#: Channels of a head where no norm of heads tells.
_HEAD = 64


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    known = tuple(layers)
    numbers = [int(one.split(".")[1]) for one in known if one.startswith("transformer_blocks.")]
    return aliases_of(_table(max(numbers, default=0)), known)


def original(name: str, shapes: Shapes) -> Original | None:
    """Stable Diffusion 3 or 3.5."""
    if name != "transformer" or "joint_blocks.0.x_block.attn.qkv.weight" not in shapes:
        return None
    shapes = first_axis(shapes, {"pos_embed": 3})
    last = blocks(shapes, "joint_blocks") - 1
    return Original(config=_config(shapes), views=views_of(_table(last), shapes))


def _table(last: int) -> Table:
    """The last block only reads the text: its norm is one that only shifts and scales."""
    text = f"joint_blocks.{last}.context_block.adaLN_modulation.1"
    return {**_LAYERS, text: swapped(f"transformer_blocks.{last}.norm1_context.linear")}


def _config(shapes: Shapes) -> dict[str, Any]:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"][1]
    normed = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
    head = normed[1][0] if normed is not None else _HEAD
    count = blocks(shapes, "joint_blocks")
    return {
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][1][0] // patch**2,
        "num_layers": count,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1][1],
        "caption_projection_dim": width,
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1][1]),
        "dual_attention_layers": tuple(
            i for i in range(count) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes
        ),
        "qk_norm": "rms_norm" if normed is not None else None,
    }
