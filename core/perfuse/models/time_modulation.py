"""One modulation for all blocks, to which each adds a table of its own: AdaLN-single.

Chen et al. 2023 (PixArt-α, arXiv:2310.00426, section 2.3).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.embeddings import TimestepEmbedding, Timesteps

__all__ = ["AdaLayerNormSingle", "TimeSizeEmbedding", "table_of"]

_WAVES = 256


class TimeSizeEmbedding(nn.Module):
    """The timestep, and for some models the picture's size and shape, as one vector [B, C]."""

    def __init__(self, width: int, *, told_size: bool = False) -> None:
        super().__init__()
        self.time_proj = Timesteps(_WAVES, flip_sin_to_cos=True, freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(_WAVES, width)
        if told_size:
            self.resolution_embedder = TimestepEmbedding(_WAVES, width // 3)
            self.aspect_ratio_embedder = TimestepEmbedding(_WAVES, width // 3)

    def forward(
        self,
        timestep: Tensor,
        dtype: torch.dtype,
        resolution: Tensor | None = None,
        shape: Tensor | None = None,
    ) -> Tensor:
        told: Tensor = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        if resolution is None or shape is None:
            return told
        sides = [self.time_proj(resolution[:, i]).to(dtype) for i in (0, 1)]
        parts = [self.resolution_embedder(side) for side in sides]
        parts.append(self.aspect_ratio_embedder(self.time_proj(shape[:, 0]).to(dtype)))
        return told + torch.cat(parts, dim=1)


class AdaLayerNormSingle(nn.Module):
    """The modulation of all blocks [B, 6 C], to which each adds its own, and the embedding [B, C]."""

    def __init__(self, width: int, *, told_size: bool = False) -> None:
        super().__init__()
        self.emb = TimeSizeEmbedding(width, told_size=told_size)
        self.linear = nn.Linear(width, 6 * width)

    def forward(
        self,
        timestep: Tensor,
        dtype: torch.dtype,
        resolution: Tensor | None = None,
        shape: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        told = self.emb(timestep, dtype, resolution, shape)
        return self.linear(F.silu(told)), told


def table_of(parts: int, width: int) -> nn.Parameter:
    """What a block adds to the modulation of all: ``parts`` vectors of ``width`` numbers."""
    return nn.Parameter(torch.randn(parts, width) / width**0.5)
