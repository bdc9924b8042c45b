"""Lumina 2's transformer as its authors' files hold it, and as LoRAs name its layers."""

from collections.abc import Iterable
from typing import Any

from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.models.original_names import Table, aliases_of, blocks, stacked, views_of

__all__ = ["aliases", "original"]

_TOLD = "time_caption_embed"
#: Heads of queries, of keys and of values of the size that there is, as parts of one another.
_SHARES = (3, 1, 1)
#: A norm that no model reads.
_LEFT_OVER = "norm_final.weight"


def _table(shares: tuple[int, ...]) -> Table:
    """What layers are called, with so many heads of queries, keys and values."""
    table: dict[str, str | Stacked] = {
        "t_embedder.mlp.0": f"{_TOLD}.timestep_embedder.linear_1",
        "t_embedder.mlp.2": f"{_TOLD}.timestep_embedder.linear_2",
        "cap_embedder.0": f"{_TOLD}.caption_embedder.0",
        "cap_embedder.1": f"{_TOLD}.caption_embedder.1",
        "final_layer.adaLN_modulation.1": "norm_out.linear_1",
        "final_layer.linear": "norm_out.linear_2",
    }
    for row, modulated in (("layers", True), ("noise_refiner", True), ("context_refiner", False)):
        block = f"{row}.{{}}"
        table |= {
            f"{block}.attention.qkv": stacked(
                f"{block}.attn", "to_q", "to_k", "to_v", shares=shares
            ),
            f"{block}.attention.out": f"{block}.attn.to_out.0",
            f"{block}.attention.q_norm": f"{block}.attn.norm_q",
            f"{block}.attention.k_norm": f"{block}.attn.norm_k",
            f"{block}.attention_norm1": f"{block}.norm1.norm" if modulated else f"{block}.norm1",
            f"{block}.attention_norm2": f"{block}.norm2",
            f"{block}.feed_forward.w1": f"{block}.feed_forward.linear_1",
            f"{block}.feed_forward.w2": f"{block}.feed_forward.linear_2",
            f"{block}.feed_forward.w3": f"{block}.feed_forward.linear_3",
        }
        if modulated:
            table[f"{block}.adaLN_modulation.1"] = f"{block}.norm1.linear"
    return table


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    return aliases_of(_table(_SHARES), layers)


def original(name: str, shapes: Shapes) -> Original | None:
    """Lumina-Image 2.0."""
    marks = {"layers.0.attention.qkv.weight", "layers.0.adaLN_modulation.1.weight"}
    if name != "transformer" or not marks <= shapes.keys():
        return None
    config = _config(shapes)
    heads, keys = config["num_attention_heads"], config["num_kv_heads"]
    kept = {key: shape for key, shape in shapes.items() if key != _LEFT_OVER}
    return Original(config=config, views=views_of(_table((heads, keys, keys)), kept))


def _config(shapes: Shapes) -> dict[str, Any]:
    width, pixels = shapes["x_embedder.weight"][1]
    head = shapes["layers.0.attention.q_norm.weight"][1][0]
    joined = shapes["layers.0.attention.qkv.weight"][1][0]
    return {
        "in_channels": pixels // 4,
        "hidden_size": width,
        "num_layers": blocks(shapes, "layers"),
        "num_refiner_layers": blocks(shapes, "noise_refiner"),
        "num_attention_heads": width // head,
        "num_kv_heads": (joined - width) // head // 2,
        "axes_dim_rope": (head // 3,) * 3,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1][1],
    }
