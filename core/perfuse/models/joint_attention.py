"""Attention of transformers that read text and picture tokens in one sequence.

Esser et al. 2024, arXiv:2403.03206, section 4: the two kinds have weights of their own, and attend
to each other.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.adaptive_norms import RMSNorm

__all__ = ["Heads", "JointAttention", "Rotate", "SelfAttention", "attend", "split_heads"]

#: Queries, keys and values, each [B, H, N, D].
Heads = tuple[Tensor, Tensor, Tensor]
#: Turns heads [B, H, N, D] by a table of positions.
Rotate = Callable[[Tensor, Tensor], Tensor]
#: Makes a norm of so many channels, with an epsilon.
Norm = Callable[[int, float], nn.Module]


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of heads [B, H, N, D], joined to [B, N, H · D]."""
    hidden = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return hidden.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention of [B, N, C] with optional norms of queries and keys, and rotary positions.

    Args:
        channels: C.
        heads: Their number.
        head_dim: Channels of a head.
        qk_eps: The epsilon of the norms of queries and keys; ``None`` for no norms.
        qk_norm: What makes such a norm of channels and an epsilon: RMS norms by default.
        bias: Whether the projections have biases.
        out: Whether there is an output projection; without, the joined heads are the result.
        rotate: How ``table`` turns queries and keys.
        kv_heads: The number of heads of keys and values, where several of queries share one.
        context: Channels of what keys and values are made of, where that is not the tokens themselves.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_dim: int,
        qk_eps: float | None = 1e-6,
        qk_norm: Norm = RMSNorm,
        bias: bool = True,
        out: bool = True,
        rotate: Rotate | None = None,
        kv_heads: int | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        inner, kept = heads * head_dim, self.kv_heads * head_dim
        self.rotate = rotate
        self.norm_q: nn.Module = _norm(qk_norm, head_dim, qk_eps)
        self.norm_k: nn.Module = _norm(qk_norm, head_dim, qk_eps)
        self.to_q = nn.Linear(channels, inner, bias=bias)
        read = channels if context is None else context
        self.to_k = nn.Linear(read, kept, bias=bias)
        self.to_v = nn.Linear(read, kept, bias=bias)
        if out:
            self.to_out = nn.ModuleList([nn.Linear(inner, channels, bias=bias), nn.Dropout(0.0)])
        self.out = out

    def forward(
        self, hidden: Tensor, table: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        query, key, value = self.heads_of(hidden)
        query, key = self.turned(query, table), self.turned(key, table)
        joined = attend(query, key, value, bias)
        return self.leave(joined) if self.out else joined

    def heads_of(self, hidden: Tensor, context: Tensor | None = None) -> Heads:
        """Queries and keys, normalised, and values, each [B, H, N, D]; the last two of the context."""
        return self.normed(*self.raw_heads(hidden, context))

    def raw_heads(self, hidden: Tensor, context: Tensor | None = None) -> Heads:
        """The same before their norms, keys and values not yet shared."""
        query = split_heads(self.to_q(hidden), self.heads)
        read = hidden if context is None else context
        key, value = (split_heads(layer(read), self.kv_heads) for layer in (self.to_k, self.to_v))
        return query, key, value

    def normed(self, query: Tensor, key: Tensor, value: Tensor) -> Heads:
        """Heads after their norms, keys and values for each query."""
        return self.norm_q(query), self._shared(self.norm_k(key)), self._shared(value)

    def _shared(self, heads: Tensor) -> Tensor:
        """Heads of keys or values [B, K, N, D], each as often as queries share it."""
        times = self.heads // self.kv_heads
        if times == 1:
            return heads
        return heads[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2)

    def turned(self, heads: Tensor, table: Tensor | None) -> Tensor:
        return heads if table is None or self.rotate is None else self.rotate(heads, table)

    def leave(self, joined: Tensor) -> Tensor:
        output: Tensor = self.to_out[0](joined)
        return output


class JointAttention(SelfAttention):
    """Attention of picture tokens [B, N, C] and text tokens [B, S, C] to both, with weights for each.

    Args:
        text_first: Whether the text comes first in the sequence, and in ``table``: as in Flux and
            Qwen-Image, unlike in Stable Diffusion 3.
        reads_only: The text is read and not written: the last block of Stable Diffusion 3, whose text
            has no output projection.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_dim: int,
        qk_eps: float | None = 1e-6,
        qk_norm: Norm = RMSNorm,
        text_first: bool = True,
        reads_only: bool = False,
        bias: bool = True,
        rotate: Rotate | None = None,
    ) -> None:
        super().__init__(
            channels,
            heads=heads,
            head_dim=head_dim,
            qk_eps=qk_eps,
            qk_norm=qk_norm,
            bias=bias,
            rotate=rotate,
        )
        inner = heads * head_dim
        self.text_first = text_first
        self.norm_added_q: nn.Module = _norm(qk_norm, head_dim, qk_eps)
        self.norm_added_k: nn.Module = _norm(qk_norm, head_dim, qk_eps)
        self.add_q_proj = nn.Linear(channels, inner, bias=bias)
        self.add_k_proj = nn.Linear(channels, inner, bias=bias)
        self.add_v_proj = nn.Linear(channels, inner, bias=bias)
        self.to_add_out: nn.Module | None = None
        if not reads_only:
            self.to_add_out = nn.Linear(inner, channels, bias=bias)

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        text: Tensor,
        table: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The picture's and the text's tokens after attention; no text if it is only read."""
        return self.left(*self.mixed(self.heads_of(hidden), text, table, bias))

    def mixed(
        self,
        heads: Heads,
        text: Tensor,
        table: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The picture's and the text's tokens after attention, before they leave, of its heads."""
        pairs = zip(heads, self.text_heads(text), strict=True)
        query, key, value = (
            torch.cat([added, own] if self.text_first else [own, added], dim=2)
            for own, added in pairs
        )
        joined = attend(self.turned(query, table), self.turned(key, table), value, bias)
        length = text.shape[1]
        if self.text_first:
            return joined[:, length:], joined[:, :length]
        length = heads[0].shape[2]
        return joined[:, :length], joined[:, length:]

    def left(self, hidden: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both through their output projections."""
        return self.leave(hidden), None if self.to_add_out is None else self.to_add_out(text)

    def text_heads(self, text: Tensor) -> Heads:
        """The text's queries and keys, normalised, and values, each [B, H, S, D]."""
        layers = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        query, key, value = (split_heads(layer(text), self.heads) for layer in layers)
        return self.norm_added_q(query), self.norm_added_k(key), value


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, N, H · D] to [B, H, N, D]."""
    split: Tensor = tokens.unflatten(-1, (heads, -1))  # type: ignore[no-untyped-call]
    return split.transpose(1, 2)


def _norm(kind: Norm, channels: int, eps: float | None) -> nn.Module:
    return nn.Identity() if eps is None else kind(channels, eps)
