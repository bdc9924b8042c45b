"""Norms of transformers, of which many are shifted and scaled by what the network is told.

Adaptive layer norms are DiT's (Peebles and Xie 2022, arXiv:2212.09748); Flux and Stable Diffusion 3
have variants of them. Tokens are [B, N, C], and the embedding that modulates them is [B, E].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AdaLayerNorm",
    "AdaLayerNormContinuous",
    "AdaLayerNormZero",
    "AdaLayerNormZeroDual",
    "AdaLayerNormZeroSingle",
    "RMSNorm",
    "ZeroCentredNorm",
    "modulate",
    "plain_norm",
]


def modulate(hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift [B, N, C] by [B, C]: ``hidden * (1 + scale) + shift``."""
    return hidden * (1 + scale[:, None]) + shift[:, None]


def plain_norm(channels: int, eps: float = 1e-6) -> nn.LayerNorm:
    """A layer norm without weights, to be modulated."""
    return nn.LayerNorm(channels, elementwise_affine=False, eps=eps)


class RMSNorm(nn.Module):
    """Division by the root mean square (Zhang and Sennrich 2019, arXiv:1910.07467), in float32.

    ``affine=False`` leaves the weight out, ``bias`` adds something to each channel.
    """

    def __init__(
        self, channels: int, eps: float, *, affine: bool = True, bias: bool = False
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        normal = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        if self.weight is None:
            return normal.to(hidden.dtype)
        scaled = normal * self.weight.float()
        return (scaled if self.bias is None else scaled + self.bias.float()).to(hidden.dtype)


class ZeroCentredNorm(nn.Module):
    """Division by the root mean square, times one plus a weight, as Gemma and Qwen-Image 2.1 have it."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.plain = RMSNorm(channels, eps, affine=False)

    def forward(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.plain(hidden.float()) * (1.0 + self.weight.float())
        return normed.to(hidden.dtype)


class _Adaptive(nn.Module):
    """A norm without weights, and a layer that makes ``parts`` modulations of an embedding."""

    def __init__(
        self,
        channels: int,
        parts: int,
        *,
        embedding: int | None = None,
        bias: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding or channels, parts * channels, bias=bias)
        self.norm = plain_norm(channels, eps)
        self.parts = parts

    def modulations(self, embedding: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = self.linear(F.silu(embedding)).chunk(self.parts, dim=1)
        return parts


class AdaLayerNorm(_Adaptive):
    """Tokens to tokens. The embedding may have another width."""

    def __init__(self, channels: int, embedding: int | None = None) -> None:
        super().__init__(channels, 2, embedding=embedding)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        shift, scale = self.modulations(embedding)
        return modulate(self.norm(hidden), shift, scale)


class AdaLayerNormZero(_Adaptive):
    """Tokens to (tokens, gate of attention, shift, scale and gate of the feed-forward network)."""

    def __init__(self, channels: int, *, bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__(channels, 6, bias=bias, eps=eps)

    def forward(self, hidden: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        shift, scale, *others = self.modulations(embedding)
        return modulate(self.norm(hidden), shift, scale), *others


class AdaLayerNormZeroDual(_Adaptive):
    """As ``AdaLayerNormZero``, and at the end tokens and a gate of a second attention (SD 3.5)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 9)

    def forward(self, hidden: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        shift, scale, gate, *feed, shift_2, scale_2, gate_2 = self.modulations(embedding)
        normal = self.norm(hidden)
        first, second = modulate(normal, shift, scale), modulate(normal, shift_2, scale_2)
        return first, gate, *feed, second, gate_2


class AdaLayerNormZeroSingle(_Adaptive):
    """Tokens to (tokens, gate), for blocks with attention and feed-forward network side by side."""

    def __init__(self, channels: int, *, bias: bool = True) -> None:
        super().__init__(channels, 3, bias=bias)

    def forward(self, hidden: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        shift, scale, gate = self.modulations(embedding)
        return modulate(self.norm(hidden), shift, scale), gate


class AdaLayerNormContinuous(_Adaptive):
    """Tokens to tokens, before the last layer. The embedding may have another width."""

    def __init__(self, channels: int, embedding: int | None = None, *, bias: bool = True) -> None:
        super().__init__(channels, 2, embedding=embedding, bias=bias)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulations(embedding)  # in this order, unlike in the others
        return modulate(self.norm(hidden), shift, scale)
