"""Chroma's transformer as its author's files hold it, and as LoRAs name its layers."""

from collections.abc import Iterable
from typing import Any

from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.models.flux_names import BLOCKS, PROCESSORS
from perfuse.models.original_names import Table, aliases_of, blocks, views_of

__all__ = ["aliases", "original"]

_APPROXIMATOR = "distilled_guidance_layer"
_LAYERS: Table = {
    **BLOCKS,
    f"{_APPROXIMATOR}.layers.{{}}.in_layer": f"{_APPROXIMATOR}.layers.{{}}.linear_1",
    f"{_APPROXIMATOR}.layers.{{}}.out_layer": f"{_APPROXIMATOR}.layers.{{}}.linear_2",
    f"{_APPROXIMATOR}.norms.{{}}": f"{_APPROXIMATOR}.norms.{{}}",
}


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    return aliases_of({**_LAYERS, **PROCESSORS}, layers)


def original(name: str, shapes: Shapes) -> Original | None:
    """Chroma."""
    if name != "transformer" or f"{_APPROXIMATOR}.layers.0.in_layer.weight" not in shapes:
        return None
    return Original(config=_config(shapes), views=views_of(_LAYERS, shapes))


def _config(shapes: Shapes) -> dict[str, Any]:
    width, channels = shapes["img_in.weight"][1]
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][1][0]
    hidden, inputs = shapes[f"{_APPROXIMATOR}.in_proj.weight"][1]
    return {
        "in_channels": channels,
        "num_layers": blocks(shapes, "double_blocks"),
        "num_single_layers": blocks(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1][1],
        "approximator_num_channels": inputs,
        "approximator_hidden_dim": hidden,
        "approximator_layers": blocks(shapes, f"{_APPROXIMATOR}.layers"),
    }
