"""Qwen-Image's transformer in one file, whose tensors have the names of Diffusers' model."""

from perfuse.contract.original import Original, Shapes
from perfuse.models.original_names import blocks, views_of

__all__ = ["original"]


def original(name: str, shapes: Shapes) -> Original | None:
    """Qwen-Image."""
    marks = {"transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"}
    if name != "transformer" or not marks <= shapes.keys():
        return None
    width, channels = shapes["img_in.weight"][1]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][1][0]
    config = {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][1][0] // 4,
        "num_layers": blocks(shapes, "transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1][1],
    }
    return Original(config=config, views=views_of({}, shapes))
