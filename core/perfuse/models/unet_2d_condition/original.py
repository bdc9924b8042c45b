"""The UNet as CompVis' and Stability AI's files hold it: a flat list of blocks down and up."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfuse.contract.original import Original, Shapes, View

__all__ = ["PLAIN", "RESNET", "original"]

#: Parts that are stored alone, and their names in Diffusers' model.
PLAIN = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
#: The layers of a residual block.
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)")
_DEPTH = re.compile(r"transformer_blocks\.(\d+)\.")
#: Channels of a head; Stable Diffusion 1, whose projections are convolutions, has eight heads.
_HEAD, _HEADS = 64, 8
#: Sinusoids of one of SDXL's time ids.
_TIME_ID = 256


@dataclass
class _Level:
    """The blocks at one resolution, on the way down or up."""

    resnets: int = 0
    width: int = 0
    #: Of each attention, how many transformer blocks.
    depths: list[int] = field(default_factory=list)


def original(name: str, shapes: Shapes) -> Original | None:
    """The UNet of Stable Diffusion 1, 2 or XL."""
    if name != "unet" or not {"input_blocks.0.0.weight", "out.2.weight"} & shapes.keys():
        return None
    places, down, up = _places(shapes)
    views = {
        _renamed(key, places): View(stored=key, shape=shape[1]) for key, shape in shapes.items()
    }
    return Original(config=_config(shapes, down, up), views=views)


def _places(shapes: Shapes) -> tuple[dict[str, str], list[_Level], list[_Level]]:
    """Where each original block lies in Diffusers' model, and the levels down and up."""
    places = dict(PLAIN)
    found = {
        name: sorted({int(m[2]) for key in shapes if (m := _BLOCK.match(key)) and m[1] == name})
        for name in ("input_blocks", "output_blocks")
    }
    down, up = [_Level()], [_Level()]
    for i in found["input_blocks"][1:]:
        block, level = f"input_blocks.{i}", f"down_blocks.{len(down) - 1}"
        if f"{block}.0.op.weight" in shapes:
            places[f"{block}.0.op"] = f"{level}.downsamplers.0.conv"
            down.append(_Level())
            continue
        _add_layer(places, shapes, block, level, down[-1])
    for i in found["output_blocks"]:
        block, level = f"output_blocks.{i}", f"up_blocks.{len(up) - 1}"
        _add_layer(places, shapes, block, level, up[-1])
        for last in ("1", "2"):
            if f"{block}.{last}.conv.weight" in shapes:
                places[f"{block}.{last}.conv"] = f"{level}.upsamplers.0.conv"
                up.append(_Level())
    return places, down, up


def _add_layer(
    places: dict[str, str], shapes: Shapes, block: str, place: str, level: _Level
) -> None:
    """One residual block, and the transformer after it where there is one."""
    places[f"{block}.0"] = f"{place}.resnets.{level.resnets}"
    level.width = shapes[f"{block}.0.in_layers.2.weight"][1][0]
    depth = _depth(shapes, f"{block}.1.")
    if depth:
        places[f"{block}.1"] = f"{place}.attentions.{level.resnets}"
        level.depths.append(depth)
    level.resnets += 1


def _depth(shapes: Shapes, prefix: str) -> int:
    found = (_DEPTH.match(key, len(prefix)) for key in shapes if key.startswith(prefix))
    return max((int(match[1]) + 1 for match in found if match is not None), default=0)


def _renamed(key: str, places: Mapping[str, str]) -> str:
    """Diffusers' name of a tensor; the same name for one that belongs to no known block."""
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        place = places.get(".".join(parts[:length]))
        if place is not None:
            rest = ".".join(parts[length:])
            inner, _, last = rest.rpartition(".")
            return f"{place}.{RESNET.get(inner, inner)}.{last}" if inner else f"{place}.{rest}"
    return key


def _config(shapes: Shapes, down: list[_Level], up: list[_Level]) -> dict[str, Any]:
    widths = [level.width for level in down]
    layers = [level.resnets for level in down]
    linear = len(_shape(shapes, ".proj_in.weight")) == 2
    added = shapes.get("label_emb.0.0.weight")
    config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1][1],
        "out_channels": shapes["out.2.weight"][1][0],
        "block_out_channels": widths,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": [_kind("Down", level) for level in down],
        "up_block_types": [_kind("Up", level) for level in up],
        "cross_attention_dim": _shape(shapes, ".attn2.to_k.weight")[1],
        "use_linear_projection": linear,
        "attention_head_dim": [width // _HEAD for width in widths] if linear else _HEADS,
        **_depths(shapes, down),
    }
    if added is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_ID,
            "projection_class_embeddings_input_dim": added[1][1],
        }
    return config


def _shape(shapes: Shapes, end: str) -> tuple[int, ...]:
    """The shape of the first tensor whose name ends so."""
    for key, (_, shape) in shapes.items():
        if key.endswith(end):
            return shape
    raise KeyError(f"…{end}")


def _kind(way: str, level: _Level) -> str:
    return f"CrossAttn{way}Block2D" if level.depths else f"{way}Block2D"


def _depths(shapes: Shapes, down: list[_Level]) -> dict[str, Any]:
    """Transformer blocks of each level; Diffusers' middle block has those of the last level."""
    depths = [max(level.depths, default=1) for level in down]
    depths[-1] = _depth(shapes, "middle_block.1.") or depths[-1]
    return {"transformer_layers_per_block": depths}
