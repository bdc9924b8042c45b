"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), by tables that the host computes.

A table is float32 [2, N, D / 2], the cosines and the sines of N tokens for heads of D channels; or
[B, 2, N, D / 2], where the items of a batch differ. ``perfuse.models.positions`` computes them.
"""

import torch
from torch import Tensor

__all__ = ["rotate_halves", "rotate_pairs"]


def rotate_pairs(hidden: Tensor, table: Tensor) -> Tensor:
    """Rotate channels 0 and 1, 2 and 3, … of heads [B, H, N, D], as Flux does; in float32."""
    cos, sin = _parts(table)
    pairs: Tensor = hidden.float().unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
    real, imaginary = pairs.unbind(-1)
    turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
    return torch.stack(turned, dim=-1).flatten(-2).to(hidden.dtype)


def rotate_halves(hidden: Tensor, table: Tensor) -> Tensor:
    """Rotate channels 0 and D / 2, 1 and D / 2 + 1, … of heads [B, H, N, D]; in float32."""
    cos, sin = _parts(table)
    real, imaginary = hidden.float().chunk(2, dim=-1)
    turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
    return torch.cat(turned, dim=-1).to(hidden.dtype)


def _parts(table: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each to multiply heads [B, H, N, D / 2] with."""
    if table.ndim == 3:
        return table[0], table[1]
    return table[:, 0].unsqueeze(1), table[:, 1].unsqueeze(1)
