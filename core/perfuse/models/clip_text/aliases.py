"""What files of adapters call the layers of CLIP's text encoders."""

from collections.abc import Iterable

__all__ = ["aliases"]

_PREFIX = "text_model."
#: Diffusers of before 2024 named projections as its own attention does.
_OLD = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def aliases(layers: Iterable[str]) -> dict[str, str]:
    """Other names of layers, and the layers: with and without ``text_model.``, which came and went."""
    found: dict[str, str] = {}
    for layer in layers:
        inner = layer.removeprefix(_PREFIX)
        place, _, last = inner.rpartition(".")
        for name in (inner, f"{place}.{_OLD[last]}") if last in _OLD else (inner,):
            found |= {name: layer, f"{_PREFIX}{name}": layer}
    return found
