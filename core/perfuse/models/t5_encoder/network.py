"""T5's encoder (Raffel et al. 2020, arXiv:1910.10683; version 1.1 has a gated network)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import RMSNorm
from perfuse.models.loading import load_state
from perfuse.models.t5_encoder.description import MULTILINGUAL, T5Config
from perfuse.sources.fitting import Rename
from perfuse.sources.weights import Weights

__all__ = ["T5Encoder", "build", "wrap"]

#: Added to the logits of what is hidden; float16 holds it, and its exponential is 0.
_HIDDEN = -10000.0


class T5Attention(nn.Module):
    """Self-attention whose logits are not scaled, with a learned bias by distance."""

    def __init__(self, t5: T5Config, *, own_positions: bool) -> None:
        super().__init__()
        inner = t5.num_heads * t5.d_kv
        self.heads = t5.num_heads
        self.q = nn.Linear(t5.d_model, inner, bias=False)
        self.k = nn.Linear(t5.d_model, inner, bias=False)
        self.v = nn.Linear(t5.d_model, inner, bias=False)
        self.o = nn.Linear(inner, t5.d_model, bias=False)
        self.relative_attention_bias: nn.Module | None = None
        if own_positions:
            self.relative_attention_bias = nn.Embedding(
                t5.relative_attention_num_buckets, t5.num_heads
            )

    def positions(self, buckets: Tensor) -> Tensor:
        """The bias of each two tokens [1, H, S, S]."""
        assert self.relative_attention_bias is not None
        bias: Tensor = self.relative_attention_bias(buckets)
        return bias.permute(2, 0, 1).unsqueeze(0)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            layer(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        output: Tensor = self.o(attended.transpose(1, 2).flatten(2))
        return output


class T5FeedForward(nn.Module):
    """The two-layer network, gated or with ReLU, without biases."""

    def __init__(self, t5: T5Config) -> None:
        super().__init__()
        self.kind = t5.feed_forward_proj
        if self.kind == "relu":
            self.wi = nn.Linear(t5.d_model, t5.d_ff, bias=False)
        else:
            self.wi_0 = nn.Linear(t5.d_model, t5.d_ff, bias=False)
            self.wi_1 = nn.Linear(t5.d_model, t5.d_ff, bias=False)
        self.wo = nn.Linear(t5.d_ff, t5.d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.kind == "relu":
            inner = F.relu(self.wi(hidden))
        else:
            gate = self.wi_0(hidden)
            gated = F.silu(gate) if self.kind == "gated-silu" else F.gelu(gate, approximate="tanh")
            inner = gated * self.wi_1(hidden)
        output: Tensor = self.wo(inner)
        return output


class AttentionLayer(nn.Module):
    """Attention after a norm, added to its input."""

    def __init__(self, t5: T5Config, *, own_positions: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(t5, own_positions=own_positions)
        self.layer_norm = RMSNorm(t5.d_model, t5.layer_norm_epsilon)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        output: Tensor = hidden + self.SelfAttention(self.layer_norm(hidden), bias)
        return output


class FeedForwardLayer(nn.Module):
    """The two-layer network after a norm, added to its input."""

    def __init__(self, t5: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = T5FeedForward(t5)
        self.layer_norm = RMSNorm(t5.d_model, t5.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = hidden + self.DenseReluDense(self.layer_norm(hidden))
        return output


class T5Block(nn.Module):
    """Attention, then the two-layer network."""

    def __init__(self, t5: T5Config, *, own_positions: bool) -> None:
        super().__init__()
        self.attention = AttentionLayer(t5, own_positions=own_positions)
        self.feed = FeedForwardLayer(t5)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        output: Tensor = self.feed(self.attention(hidden, bias))
        return output


class T5Encoder(nn.Module):
    """``(input_ids, attention_mask, position_buckets) -> (last_hidden_state,)``."""

    def __init__(self, t5: T5Config, *, multilingual: bool) -> None:
        super().__init__()
        self.shared = nn.Embedding(t5.vocab_size, t5.d_model)
        self.multilingual = multilingual
        self.block = nn.ModuleList(
            T5Block(t5, own_positions=multilingual or i == 0) for i in range(t5.num_layers)
        )
        self.final_layer_norm = RMSNorm(t5.d_model, t5.layer_norm_epsilon)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_buckets: Tensor
    ) -> tuple[Tensor]:
        hidden: Tensor = self.shared(input_ids)
        hides = (1 - attention_mask.to(hidden.dtype))[:, None, None] * _HIDDEN
        bias = hides
        for i, block in enumerate(self.block):
            assert isinstance(block, T5Block)
            if self.multilingual or i == 0:
                bias = block.attention.SelfAttention.positions(position_buckets) + hides
            hidden = block(hidden, bias)
        return (self.final_layer_norm(hidden),)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    model = _hollow(spec)
    load_state(model, weights, where=spec.folder, rename=_names(weights.shapes), dtype=dtype)
    return model


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """Transformers' model as ours, over the same tensors."""
    if isinstance(model, T5Encoder):
        return model
    ours, state = _hollow(spec), model.state_dict()
    names = {name: _names(state)(name) for name in state}
    ours.load_state_dict({n: state[old] for old, n in names.items() if n is not None}, assign=True)
    return ours.requires_grad_(False)


def _hollow(spec: ComponentSpec) -> T5Encoder:
    with torch.device("meta"):
        config = T5Config.from_dict(spec.config)
        return T5Encoder(config, multilingual=spec.class_name == MULTILINGUAL)


def _names(stored: Iterable[str]) -> Rename:
    """Transformers' names to ours; the embedding has one or two of them there."""
    twice = "shared.weight" in set(stored)

    def rename(name: str) -> str | None:
        if name == "encoder.embed_tokens.weight":
            return None if twice else "shared.weight"
        name = name.removeprefix("encoder.")
        return name.replace(".layer.0.", ".attention.").replace(".layer.1.", ".feed.")

    return rename
