"""Qwen-Image 2.1's transformer in one file: Diffusers' names, and ComfyUI's for the gated layers."""

from collections.abc import Iterable
from typing import Any

from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.models.original_names import Table, aliases_of, blocks, stacked, views_of

__all__ = ["aliases", "original"]

_FEED = "transformer_blocks.{}.img_mlp"
_LAYERS: Table = {f"{_FEED}.gate_up": stacked(_FEED, "gate_layer", "proj")}
#: Of sixteen parts of a head, those of each axis of places.
_AXES = (2, 7, 7)


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    return aliases_of(_LAYERS, layers)


def original(name: str, shapes: Shapes) -> Original | None:
    """Qwen-Image 2.1."""
    marks = {"transformer_blocks.0.attn.norm_q.weight", "txt_in.text_norm.weight"}
    if name != "transformer" or not marks <= shapes.keys():
        return None
    return Original(config=_config(shapes), views=views_of(_LAYERS, shapes))


def _config(shapes: Shapes) -> dict[str, Any]:
    width, channels = shapes["img_in.weight"][1]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][1][0]
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][1][0],
        "num_layers": blocks(shapes, "transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "context_in_dim": shapes["txt_in.in_layer.weight"][1][1],
        "mlp_ratio": shapes["transformer_blocks.0.img_mlp.out.weight"][1][1] // width,
        "axes_dims_rope": tuple(head * part // sum(_AXES) for part in _AXES),
    }
