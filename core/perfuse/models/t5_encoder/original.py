"""T5's encoder in files of whole pipelines, and what LoRAs call its layers: as Transformers does."""

from collections.abc import Iterable

from perfuse.contract.original import Original, Shapes
from perfuse.models.original_names import blocks, views_of

__all__ = ["aliases", "original"]

_FIRST = "encoder.block.0.layer.0.SelfAttention"


def aliases(layers: Iterable[str]) -> dict[str, str]:
    """Transformers' names of layers, by which files of adapters call them."""
    return {f"encoder.{_place(layer)}": layer for layer in layers}


def _place(layer: str) -> str:
    return layer.replace(".attention.", ".layer.0.").replace(".feed.", ".layer.1.")


def original(name: str, shapes: Shapes) -> Original | None:
    """The last text encoder of FLUX.1 and of Stable Diffusion 3, T5 of version 1.1."""
    if name not in ("text_encoder_2", "text_encoder_3") or f"{_FIRST}.q.weight" not in shapes:
        return None
    count, heads = shapes[f"{_FIRST}.relative_attention_bias.weight"][1]
    inner, width = shapes[f"{_FIRST}.q.weight"][1]
    feed = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    config = {
        "vocab_size": shapes["shared.weight"][1][0],
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": shapes[feed][1][0],
        "num_layers": blocks(shapes, "encoder.block"),
        "num_heads": heads,
        "relative_attention_num_buckets": count,
        "feed_forward_proj": "gated-gelu",
    }
    kept = {key: shape for key, shape in shapes.items() if not key.startswith("decoder.")}
    return Original(config=config, views=views_of({}, kept))
