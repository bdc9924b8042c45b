"""FLUX.2's transformer as Black Forest Labs' files hold it, and as LoRAs name its layers."""

from collections.abc import Iterable
from typing import Any

from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.models.original_names import Table, aliases_of, blocks, stacked, swapped, views_of

__all__ = ["aliases", "original"]

_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}.attn"
_TOLD = "time_guidance_embed"

_LAYERS: Table = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": f"{_TOLD}.timestep_embedder.linear_1",
    "time_in.out_layer": f"{_TOLD}.timestep_embedder.linear_2",
    "guidance_in.in_layer": f"{_TOLD}.guidance_embedder.linear_1",
    "guidance_in.out_layer": f"{_TOLD}.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "double_blocks.{}.img_attn.qkv": stacked(f"{_DOUBLE}.attn", "to_q", "to_k", "to_v"),
    "double_blocks.{}.txt_attn.qkv": stacked(
        f"{_DOUBLE}.attn", "add_q_proj", "add_k_proj", "add_v_proj"
    ),
    "double_blocks.{}.img_attn.norm.query_norm": f"{_DOUBLE}.attn.norm_q",
    "double_blocks.{}.img_attn.norm.key_norm": f"{_DOUBLE}.attn.norm_k",
    "double_blocks.{}.txt_attn.norm.query_norm": f"{_DOUBLE}.attn.norm_added_q",
    "double_blocks.{}.txt_attn.norm.key_norm": f"{_DOUBLE}.attn.norm_added_k",
    "double_blocks.{}.img_attn.proj": f"{_DOUBLE}.attn.to_out.0",
    "double_blocks.{}.txt_attn.proj": f"{_DOUBLE}.attn.to_add_out",
    "double_blocks.{}.img_mlp.0": f"{_DOUBLE}.ff.linear_in",
    "double_blocks.{}.img_mlp.2": f"{_DOUBLE}.ff.linear_out",
    "double_blocks.{}.txt_mlp.0": f"{_DOUBLE}.ff_context.linear_in",
    "double_blocks.{}.txt_mlp.2": f"{_DOUBLE}.ff_context.linear_out",
    "single_blocks.{}.linear1": f"{_SINGLE}.to_qkv_mlp_proj",
    "single_blocks.{}.linear2": f"{_SINGLE}.to_out",
    "single_blocks.{}.norm.query_norm": f"{_SINGLE}.norm_q",
    "single_blocks.{}.norm.key_norm": f"{_SINGLE}.norm_k",
    "final_layer.adaLN_modulation.1": swapped("norm_out.linear"),
    "final_layer.linear": "proj_out",
}


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    return aliases_of(_LAYERS, layers)


def original(name: str, shapes: Shapes) -> Original | None:
    """FLUX.2: dev, or klein."""
    if name != "transformer" or "single_stream_modulation.lin.weight" not in shapes:
        return None
    return Original(config=_config(shapes), views=views_of(_LAYERS, shapes))


def _config(shapes: Shapes) -> dict[str, Any]:
    width, channels = shapes["img_in.weight"][1]
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][1][0]
    inner = shapes["single_blocks.0.linear2.weight"][1][1] - width
    return {
        "in_channels": channels,
        "num_layers": blocks(shapes, "double_blocks"),
        "num_single_layers": blocks(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1][1],
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1][1],
        "mlp_ratio": inner / width,
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }
