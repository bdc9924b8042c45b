"""FLUX.1's transformer as Black Forest Labs' files hold it, and as LoRAs name its layers."""

from collections.abc import Iterable
from typing import Any

from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.models.original_names import Table, aliases_of, blocks, stacked, swapped, views_of

__all__ = ["aliases", "original"]

_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_TOLD = "time_text_embed"
_OWN = stacked(f"{_DOUBLE}.attn", "to_q", "to_k", "to_v")
_TEXT = stacked(f"{_DOUBLE}.attn", "add_q_proj", "add_k_proj", "add_v_proj")

_LAYERS: Table = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": f"{_TOLD}.timestep_embedder.linear_1",
    "time_in.out_layer": f"{_TOLD}.timestep_embedder.linear_2",
    "vector_in.in_layer": f"{_TOLD}.text_embedder.linear_1",
    "vector_in.out_layer": f"{_TOLD}.text_embedder.linear_2",
    "guidance_in.in_layer": f"{_TOLD}.guidance_embedder.linear_1",
    "guidance_in.out_layer": f"{_TOLD}.guidance_embedder.linear_2",
    "double_blocks.{}.img_mod.lin": f"{_DOUBLE}.norm1.linear",
    "double_blocks.{}.txt_mod.lin": f"{_DOUBLE}.norm1_context.linear",
    "double_blocks.{}.img_attn.qkv": _OWN,
    "double_blocks.{}.txt_attn.qkv": _TEXT,
    "double_blocks.{}.img_attn.norm.query_norm": f"{_DOUBLE}.attn.norm_q",
    "double_blocks.{}.img_attn.norm.key_norm": f"{_DOUBLE}.attn.norm_k",
    "double_blocks.{}.txt_attn.norm.query_norm": f"{_DOUBLE}.attn.norm_added_q",
    "double_blocks.{}.txt_attn.norm.key_norm": f"{_DOUBLE}.attn.norm_added_k",
    "double_blocks.{}.img_attn.proj": f"{_DOUBLE}.attn.to_out.0",
    "double_blocks.{}.txt_attn.proj": f"{_DOUBLE}.attn.to_add_out",
    "double_blocks.{}.img_mlp.0": f"{_DOUBLE}.ff.net.0.proj",
    "double_blocks.{}.img_mlp.2": f"{_DOUBLE}.ff.net.2",
    "double_blocks.{}.txt_mlp.0": f"{_DOUBLE}.ff_context.net.0.proj",
    "double_blocks.{}.txt_mlp.2": f"{_DOUBLE}.ff_context.net.2",
    "single_blocks.{}.modulation.lin": f"{_SINGLE}.norm.linear",
    "single_blocks.{}.linear1": stacked(
        _SINGLE, "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", shares=(1, 1, 1, 4)
    ),
    "single_blocks.{}.norm.query_norm": f"{_SINGLE}.attn.norm_q",
    "single_blocks.{}.norm.key_norm": f"{_SINGLE}.attn.norm_k",
    "single_blocks.{}.linear2": f"{_SINGLE}.proj_out",
    "final_layer.adaLN_modulation.1": swapped("norm_out.linear"),
    "final_layer.linear": "proj_out",
}
#: XLabs' processors, of the picture (1) and of the text (2).
_PROCESSORS: Table = {
    "double_blocks.{}.qkv1": _OWN,
    "double_blocks.{}.qkv2": _TEXT,
    "double_blocks.{}.proj1": f"{_DOUBLE}.attn.to_out.0",
    "double_blocks.{}.proj2": f"{_DOUBLE}.attn.to_add_out",
    "single_blocks.{}.qkv": stacked(f"{_SINGLE}.attn", "to_q", "to_k", "to_v"),
    "single_blocks.{}.proj": f"{_SINGLE}.proj_out",
}


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    return aliases_of({**_LAYERS, **_PROCESSORS}, layers)


def original(name: str, shapes: Shapes) -> Original | None:
    """FLUX.1, or what was trained from it."""
    mark = "double_blocks.0.img_mod.lin.weight"
    if name != "transformer" or mark not in shapes:
        return None
    return Original(config=_config(shapes), views=views_of(_LAYERS, shapes))


def _config(shapes: Shapes) -> dict[str, Any]:
    width, channels = shapes["img_in.weight"][1]
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][1][0]
    drawn = shapes["final_layer.linear.weight"][1][0]
    return {
        "in_channels": channels,
        "out_channels": drawn if drawn != channels else None,
        "num_layers": blocks(shapes, "double_blocks"),
        "num_single_layers": blocks(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }
