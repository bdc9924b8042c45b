"""Attention of a text-conditioned UNet as Apple's Neural Engine takes it.

After "Deploying Transformers on the Apple Neural Engine"
(https://machinelearning.apple.com/research/neural-engine-transformers): tensors are [B, C, 1, S],
channels first; linear layers are 1×1 convolutions; each head is computed by itself, so that what it
works on is small; of an attention's tensors only the keys are transposed, once. The numbers are
those of the original, added up in another order.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse import Plan, Transform
from perfuse.capture import replace_tensors
from perfuse.errors import InputError
from perfuse.models import GEGLU, Attention, BasicTransformerBlock, FeedForward, Transformer2DModel
from perfuse_exporters.coreml.apple import CLASSES

__all__ = ["SplitEinsum", "SplitEinsumV2", "split"]


class SplitEinsum(Transform):
    """Rewrites the attention of Stable Diffusion's UNet: channels first, head by head."""

    #: How many queries are taken at once; ``None`` for all of them.
    queries: ClassVar[int | None] = None

    def apply(self, plan: Plan, options: object) -> Plan:
        for component in plan.components.values():
            if component.spec.class_name == CLASSES["unet"][0]:
                plan = plan.with_component(component.rebuilt(split, self.queries))
        return plan


class SplitEinsumV2(SplitEinsum):
    """The same with 512 queries at a time, so that large pictures stay in the engine's memory."""

    queries: ClassVar[int | None] = 512


def split(module: nn.Module, queries: int | None = None) -> nn.Module:
    """A copy of a module in which every transformer is rewritten; the weights are shared.

    Args:
        module: A UNet of ours, or a module that holds it. It is not changed.
        queries: How many queries to take at once; ``None`` for all of them. The size must then be
            fixed where the copy is captured.

    Raises:
        InputError: it has no transformer that could be rewritten.
    """
    copied = replace_tensors(module, lambda tensor: tensor)
    found = [
        (parent, name, child)
        for parent in copied.modules()
        for name, child in parent.named_children()
        if isinstance(child, Transformer2DModel)
    ]
    if not found:
        raise InputError(
            f"The transformers of {type(module).__name__} were to be rewritten; it has none of "
            "perfuse's own. Leave out the transform, or the module put in place of the UNet."
        )
    for parent, name, child in found:
        setattr(parent, name, _Transformer(child, queries))
    return copied


def _as_conv(layer: nn.Module) -> nn.Conv2d:
    """A linear layer as a 1×1 convolution that shares its weight; a convolution as it is."""
    if isinstance(layer, nn.Conv2d):
        return layer
    assert isinstance(layer, nn.Linear)
    with torch.device("meta"):
        conv = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=layer.bias is not None)
    conv.weight = nn.Parameter(layer.weight.detach()[:, :, None, None], requires_grad=False)
    conv.bias = layer.bias
    return conv


class _Transformer(nn.Module):
    """Transformer blocks over the pixels of [B, C, H, W], added to their input."""

    def __init__(self, original: Transformer2DModel, queries: int | None) -> None:
        super().__init__()
        self.norm = original.norm
        self.proj_in = _as_conv(original.proj_in)
        self.transformer_blocks = nn.ModuleList(
            _Block(block, queries)
            for block in original.transformer_blocks
            if isinstance(block, BasicTransformerBlock)
        )
        self.proj_out = _as_conv(original.proj_out)

    def forward(self, residual: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        context = context.transpose(1, 2).unsqueeze(2)
        hidden = self.proj_in(self.norm(residual)).flatten(2).unsqueeze(2)
        for block in self.transformer_blocks:
            hidden = block(hidden, context, bias)
        pixels = hidden.reshape(*hidden.shape[:2], *residual.shape[2:])
        output: Tensor = self.proj_out(pixels) + residual
        return output


class _Block(nn.Module):
    """Attention to itself, attention to the text, a feed-forward network; each normalised first."""

    def __init__(self, original: BasicTransformerBlock, queries: int | None) -> None:
        super().__init__()
        self.only_cross_attention = original.only_cross_attention
        self.norm1 = _ChannelNorm(original.norm1)
        self.attn1 = _Attention(original.attn1, queries)
        self.norm2 = _ChannelNorm(original.norm2)
        self.attn2 = _Attention(original.attn2, queries)
        self.norm3 = _ChannelNorm(original.norm3)
        self.ff = _FeedForward(original.ff)

    def forward(self, hidden: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        normal = self.norm1(hidden)
        first = context if self.only_cross_attention else normal
        hidden = self.attn1(normal, first) + hidden
        hidden = self.attn2(self.norm2(hidden), context, bias) + hidden
        output: Tensor = self.ff(self.norm3(hidden)) + hidden
        return output


class _ChannelNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) over the channels of [B, C, 1, S]."""

    def __init__(self, original: nn.LayerNorm) -> None:
        super().__init__()
        self.weight = original.weight
        self.bias = original.bias
        self.eps = original.eps

    def forward(self, hidden: Tensor) -> Tensor:
        centred = hidden - hidden.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        normal = centred * torch.rsqrt(variance + self.eps)
        return normal * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)


class _FeedForward(nn.Module):
    """The gated two-layer network of a transformer block."""

    def __init__(self, original: FeedForward) -> None:
        super().__init__()
        gated, _, out = original.net
        assert isinstance(gated, GEGLU)
        self.proj = _as_conv(gated.proj)
        self.out = _as_conv(out)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden, gate = self.proj(hidden).chunk(2, dim=1)
        output: Tensor = self.out(hidden * F.gelu(gate))
        return output


class _Attention(nn.Module):
    """Attention of [B, C, 1, Q] to a context [B, D, 1, K], one head after another."""

    def __init__(self, original: Attention, queries: int | None) -> None:
        super().__init__()
        self.heads = original.heads
        self.upcast = original.upcast
        self.queries = queries
        self.to_q = _as_conv(original.to_q)
        self.to_k = _as_conv(original.to_k)
        self.to_v = _as_conv(original.to_v)
        self.to_out = _as_conv(original.to_out[0])

    def forward(self, hidden: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        query, key, value = self.to_q(hidden), self.to_k(context), self.to_v(context)
        dtype, width = query.dtype, query.shape[1] // self.heads
        if self.upcast:
            query, key, value = query.float(), key.float(), value.float()
        # Here, not the scores: it is smaller, and in half precision they could overflow.
        query = query * width**-0.5
        if bias is not None:
            bias = bias.to(query.dtype).transpose(1, 3)
        keys = torch.split(key.transpose(1, 3), width, dim=3)
        values = torch.split(value, width, dim=1)
        parts = []
        for part in self._parts(query):
            heads = zip(torch.split(part, width, dim=1), keys, values, strict=True)
            parts.append(torch.cat([_attend(q, k, v, bias) for q, k, v in heads], dim=1))
        attended = torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]
        output: Tensor = self.to_out(attended.to(dtype))
        return output

    def _parts(self, query: Tensor) -> tuple[Tensor, ...]:
        total, most = query.shape[3], self.queries
        if most is None:
            return (query,)
        if isinstance(total, torch.SymInt):
            raise InputError(
                "split_einsum_v2 was to be captured for any size; its parts depend on it. Give one "
                "size, --height H --width W, or use split_einsum."
            )
        if total <= most:
            return (query,)
        sizes = [min(most, total - start) for start in range(0, total, most)]
        return torch.split(query, sizes, dim=3)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """One head: queries [B, C, 1, Q], keys [B, K, 1, C], values [B, C, 1, K] to [B, C, 1, Q].

    The two products are in the one form that Core ML has for four axes.
    """
    scores = torch.einsum("bkhc,bchq->bkhq", key, query)
    if bias is not None:
        scores = scores + bias
    return torch.einsum("bchk,bkhq->bchq", value, scores.softmax(dim=1))
