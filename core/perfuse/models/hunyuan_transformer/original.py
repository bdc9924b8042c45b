"""What Tencent's own files of LoRAs call the layers of Hunyuan-DiT."""

from collections.abc import Iterable

from perfuse.contract.original import Stacked
from perfuse.models.original_names import Table, aliases_of, stacked

__all__ = ["aliases"]

_OWN, _TEXT = "blocks.{}.attn1", "blocks.{}.attn2"
_LAYERS: Table = {
    f"{_OWN}.Wqkv": stacked(_OWN, "to_q", "to_k", "to_v"),
    f"{_OWN}.out_proj": f"{_OWN}.to_out.0",
    f"{_TEXT}.q_proj": f"{_TEXT}.to_q",
    f"{_TEXT}.kv_proj": stacked(_TEXT, "to_k", "to_v"),
    f"{_TEXT}.out_proj": f"{_TEXT}.to_out.0",
    "blocks.{}.mlp.fc1": "blocks.{}.ff.net.0.proj",
    "blocks.{}.mlp.fc2": "blocks.{}.ff.net.2",
    "blocks.{}.default_modulation.1": "blocks.{}.norm1.linear",
}


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    return aliases_of(_LAYERS, layers)
