"""Rotary tables of a caption and a picture in one sequence: places on three axes, from tables of each.

The caption's tokens have the first axis for themselves; the picture is at one place after them there,
and has its rows and columns on the other two (Z-Image, Lumina 2).
"""

import torch
from torch import Tensor

__all__ = ["caption_table", "picture_table"]


def picture_table(first: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The table of a picture's tokens, [B, 2, h · w, D / 2].

    Args:
        first: Of its place after the caption, [B, 2, D₁ / 2].
        rows: [2, h, D₂ / 2].
        columns: [2, w, D₃ / 2].
    """
    batch, height, width = first.shape[0], rows.shape[1], columns.shape[1]
    parts = (first[:, :, None, None], rows[None, :, :, None], columns[None, :, None])
    whole = [part.expand(batch, 2, height, width, -1) for part in parts]
    return torch.cat(whole, dim=-1).flatten(2, 3)


def caption_table(first: Tensor, batch: int, others: int) -> Tensor:
    """The table of a caption's tokens, [B, 2, S, D / 2]; they are at 0 on the other axes.

    Args:
        first: Of their places, [2, S, D₁ / 2].
        batch: B.
        others: The channels of the other two axes.
    """
    still = torch.stack([torch.ones_like(first[0, :, :1]), torch.zeros_like(first[0, :, :1])])
    table = torch.cat([first, still.expand(-1, -1, others // 2)], dim=-1)
    return table.expand(batch, -1, -1, -1)
