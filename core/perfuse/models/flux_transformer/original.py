"""FLUX.1's transformer as Black Forest Labs' files hold it, and as LoRAs name its layers."""

from collections.abc import Iterable
from typing import Any

from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.models.flux_names import BLOCKS, PROCESSORS
from perfuse.models.original_names import Table, aliases_of, blocks, swapped, views_of

__all__ = ["aliases", "original"]

_TOLD = "time_text_embed"

_LAYERS: Table = {
    **BLOCKS,
    "time_in.in_layer": f"{_TOLD}.timestep_embedder.linear_1",
    "time_in.out_layer": f"{_TOLD}.timestep_embedder.linear_2",
    "vector_in.in_layer": f"{_TOLD}.text_embedder.linear_1",
    "vector_in.out_layer": f"{_TOLD}.text_embedder.linear_2",
    "guidance_in.in_layer": f"{_TOLD}.guidance_embedder.linear_1",
    "guidance_in.out_layer": f"{_TOLD}.guidance_embedder.linear_2",
    "double_blocks.{}.img_mod.lin": "transformer_blocks.{}.norm1.linear",
    "double_blocks.{}.txt_mod.lin": "transformer_blocks.{}.norm1_context.linear",
    "single_blocks.{}.modulation.lin": "single_transformer_blocks.{}.norm.linear",
    "final_layer.adaLN_modulation.1": swapped("norm_out.linear"),
}


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    return aliases_of({**_LAYERS, **PROCESSORS}, layers)


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
