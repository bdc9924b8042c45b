"""Z-Image's transformer as its authors' files hold it, and as LoRAs name its layers."""

from collections.abc import Iterable
from typing import Any

from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.models.original_names import Table, aliases_of, blocks, first_axis, stacked, views_of

__all__ = ["aliases", "original"]


def _attention(place: str) -> Table:
    return {
        f"{place}.qkv": stacked(place, "to_q", "to_k", "to_v"),
        f"{place}.out": f"{place}.to_out.0",
        f"{place}.q_norm": f"{place}.norm_q",
        f"{place}.k_norm": f"{place}.norm_k",
    }


_LAYERS: Table = {
    "x_embedder": "all_x_embedder.2-1",
    "final_layer.linear": "all_final_layer.2-1.linear",
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    **_attention("layers.{}.attention"),
    **_attention("noise_refiner.{}.attention"),
    **_attention("context_refiner.{}.attention"),
}
#: A norm that no model reads.
_LEFT_OVER = "norm_final.weight"


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    return aliases_of(_LAYERS, layers)


def original(name: str, shapes: Shapes) -> Original | None:
    """Z-Image, or Z-Image-Turbo."""
    marks = {"layers.0.attention.qkv.weight", "cap_pad_token"}
    if name != "transformer" or not marks <= shapes.keys():
        return None
    kept = {key: shape for key, shape in shapes.items() if key != _LEFT_OVER}
    kept = dict(first_axis(kept, {"x_pad_token": 2, "cap_pad_token": 2}))
    return Original(config=_config(shapes), views=views_of(_LAYERS, kept))


def _config(shapes: Shapes) -> dict[str, Any]:
    width, pixels = shapes["x_embedder.weight"][1]
    normed = shapes.get("layers.0.attention.q_norm.weight")
    head = normed[1][0] if normed is not None else 128
    return {
        "in_channels": pixels // 4,
        "dim": width,
        "n_layers": blocks(shapes, "layers"),
        "n_refiner_layers": blocks(shapes, "noise_refiner"),
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "qk_norm": normed is not None,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1][1],
    }
