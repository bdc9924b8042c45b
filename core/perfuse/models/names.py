"""The names that older checkpoints give to tensors, without torch."""

import re

__all__ = ["current", "without_positions"]

_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(rf"(attentions\.\d+\.)({'|'.join(_ATTENTION)})(?=\.(?:weight|bias)$)")


def current(name: str) -> str | None:
    """A tensor's name in one of Diffusers' models.

    Before Diffusers 0.12, attention over pixels had other parameter names.
    """
    return _OLD_ATTENTION.sub(lambda old: old[1] + _ATTENTION[old[2]], name)


def without_positions(name: str) -> str | None:
    """A tensor's name; ``None`` for positions, only a range, which Transformers saved before 4.31."""
    return None if name.endswith("embeddings.position_ids") else name
