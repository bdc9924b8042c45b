"""Attention over the pixels of a feature map, and over text."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of [B, N, C] to itself or to a context [B, S, D]."""

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_dim: int,
        context_channels: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        context_channels = context_channels if context_channels is not None else channels
        self.heads = heads
        self.upcast = upcast
        self.to_q = nn.Linear(channels, inner, bias=bias)
        self.to_k = nn.Linear(context_channels, inner, bias=bias)
        self.to_v = nn.Linear(context_channels, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels), nn.Dropout(dropout)])

    def forward(
        self, hidden: Tensor, context: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        context = hidden if context is None else context
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(hidden), self.to_k(context), self.to_v(context))
        )
        dtype = query.dtype
        if self.upcast:  # SD 2.1's scores overflow half precision
            query, key, value = query.float(), key.float(), value.float()
            bias = bias.float() if bias is not None else None
        hidden = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        hidden = hidden.transpose(1, 2).flatten(2).to(dtype)
        output: Tensor = self.to_out[1](self.to_out[0](hidden))
        return output


class SpatialAttention(Attention):
    """Normalised self-attention over the pixels of [B, C, H, W], added to its input."""

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int,
        groups: int | None,
        eps: float,
        output_scale_factor: float = 1.0,
    ) -> None:
        super().__init__(channels, heads=channels // head_dim, head_dim=head_dim, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps) if groups is not None else None
        self.output_scale_factor = output_scale_factor

    def forward(
        self, hidden: Tensor, context: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        tokens = self.group_norm(hidden) if self.group_norm is not None else hidden
        attended = super().forward(tokens.permute(0, 2, 3, 1).flatten(1, 2))
        output = _unflatten(attended, hidden.shape[-2:]) + hidden
        return output if self.output_scale_factor == 1 else output / self.output_scale_factor


class GEGLU(nn.Module):
    """A gated linear unit with the exact GELU (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, inner * 2)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden, gate = self.proj(hidden).chunk(2, dim=-1)
        return hidden * F.gelu(gate)


class SwiGLU(nn.Module):
    """A gated linear unit with SiLU (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, inner * 2)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden, gate = self.proj(hidden).chunk(2, dim=-1)
        return hidden * F.silu(gate)


class TanhGELU(nn.Module):
    """A linear layer and GELU, approximated by tanh."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, inner)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.proj(hidden), approximate="tanh")


_FIRST_LAYERS: dict[str, type[nn.Module]] = {
    "geglu": GEGLU,
    "gelu-approximate": TanhGELU,
    "swiglu": SwiGLU,
}


class FeedForward(nn.Module):
    """The two-layer network of a transformer block; the first is gated, or has an activation."""

    def __init__(
        self,
        channels: int,
        *,
        activation: str = "geglu",
        inner: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = inner if inner is not None else 4 * channels
        first = _FIRST_LAYERS[activation](channels, inner)
        self.net = nn.ModuleList([first, nn.Dropout(dropout), nn.Linear(inner, channels)])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.net:
            hidden = layer(hidden)
        return hidden


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, a feed-forward network; each normalised first.

    With ``only_cross_attention`` the first attention is a cross-attention, too.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_dim: int,
        context_channels: int,
        only_cross_attention: bool,
        upcast: bool,
    ) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(
            channels,
            heads=heads,
            head_dim=head_dim,
            context_channels=context_channels if only_cross_attention else None,
            upcast=upcast,
        )
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(
            channels,
            heads=heads,
            head_dim=head_dim,
            context_channels=context_channels,
            upcast=upcast,
        )
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(
        self, hidden: Tensor, context: Tensor, bias: Tensor | None, size: torch.Size
    ) -> Tensor:
        """Attend within [B, H * W, C]; ``size`` is (H, W), for blocks that know of places."""
        first = context if self.only_cross_attention else None
        hidden = self.attn1(self.norm1(hidden), first) + hidden
        hidden = self.attn2(self.norm2(hidden), context, bias) + hidden
        output: Tensor = self.ff(self.norm3(hidden)) + hidden
        return output


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of [B, C, H, W], added to their input."""

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        layers: int,
        context_channels: int,
        groups: int,
        linear_projection: bool,
        only_cross_attention: bool,
        upcast: bool,
    ) -> None:
        super().__init__()
        head_dim = channels // heads
        inner = heads * head_dim
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.linear_projection = linear_projection
        self.proj_in: nn.Module = (
            nn.Linear(channels, inner) if linear_projection else nn.Conv2d(channels, inner, 1)
        )
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner,
                heads=heads,
                head_dim=head_dim,
                context_channels=context_channels,
                only_cross_attention=only_cross_attention,
                upcast=upcast,
            )
            for _ in range(layers)
        )
        self.proj_out: nn.Module = (
            nn.Linear(inner, channels) if linear_projection else nn.Conv2d(inner, channels, 1)
        )

    def forward(self, residual: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        size = residual.shape[-2:]
        hidden = self.norm(residual)
        if not self.linear_projection:
            hidden = self.proj_in(hidden)
        hidden = hidden.permute(0, 2, 3, 1).flatten(1, 2)
        if self.linear_projection:
            hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = block(hidden, context, bias, size)
        if self.linear_projection:
            hidden = self.proj_out(hidden)
        hidden = _unflatten(hidden, size)
        if not self.linear_projection:
            hidden = self.proj_out(hidden.contiguous(memory_format=_layout(residual)))
        output: Tensor = hidden + residual
        return output


def _unflatten(tokens: Tensor, size: torch.Size) -> Tensor:
    """[B, H * W, C] to [B, C, H, W]."""
    picture: Tensor = tokens.unflatten(1, size).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
    return picture


def _layout(tensor: Tensor) -> torch.memory_format:
    """The memory format of a tensor, so that channels-last stays channels-last."""
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
