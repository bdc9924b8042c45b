"""Qwen-Image 2.1's transformer: words see those before them, and the picture all.

Words, and pictures among them, are told the time of a finished picture, so that no step changes what
they are.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import ZeroCentredNorm, plain_norm
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.embeddings import TimestepEmbedding, Timesteps
from perfuse.models.half_precision import in_range
from perfuse.models.joint_attention import SelfAttention, attend
from perfuse.models.qwen_image_21_transformer.description import QwenImage21Config
from perfuse.models.rotary import rotate_pairs
from perfuse.sources.weights import Weights

__all__ = ["QwenImage21Transformer2DModel", "build", "wrap"]

_WAVES = 256


class TimeEmbedding(nn.Module):
    """The timestep, 0 to 1000, as [B, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_proj = Timesteps(_WAVES, flip_sin_to_cos=True, freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(_WAVES, width, bias=False)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        told: Tensor = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        return told


class TextProjection(nn.Module):
    """The text's states, normalised, as tokens."""

    def __init__(self, states: int, width: int, eps: float) -> None:
        super().__init__()
        self.text_norm = ZeroCentredNorm(states, eps)
        self.in_layer = nn.Linear(states, width, bias=False)
        self.out_layer = nn.Linear(width, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        inner = F.gelu(self.in_layer(self.text_norm(states)), approximate="tanh")
        output: Tensor = self.out_layer(inner)
        return output


class FeedForward(nn.Module):
    """A gated linear unit between two linear layers (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.gate_layer = nn.Linear(width, inner, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.out(F.silu(self.gate_layer(hidden)) * self.proj(hidden))
        return output


class CausalAttention(SelfAttention):
    """Attention of words to those before them, and of the picture to all, with the same weights.

    Both go through each linear layer together, which reads its weight once: of a small picture that is
    an eighth of a step.
    """

    def forward(  # type: ignore[override]
        self, hidden: Tensor, text: Tensor, table: Tensor, text_table: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens of the picture [B, N, C] and of words [B, S, C]; ``bias`` [B, S, S] is of words."""
        words = text.shape[1]
        query, key, values = self.heads_of(torch.cat([text, hidden], dim=1))
        text_query = self.turned(query[:, :, :words], text_table)
        text_key = self.turned(key[:, :, :words], text_table)
        read = attend(text_query, text_key, values[:, :, :words], bias[:, None])
        # What the last word sees of the words, and all of the picture.
        seen = torch.cat([bias[:, -1], torch.zeros_like(hidden[..., 0])], dim=1)[:, None, None]
        keys = torch.cat([text_key, self.turned(key[:, :, words:], table)], dim=2)
        attended = attend(self.turned(query[:, :, words:], table), keys, values, seen)
        left = self.leave(torch.cat([read, attended], dim=1))
        return left[:, words:], left[:, :words]


class QwenImage21Block(nn.Module):
    """Attention and a feed-forward network, scaled and gated by the modulation of all blocks."""

    streams: ClassVar[int] = 2

    def __init__(self, config: QwenImage21Config) -> None:
        super().__init__()
        width = config.width
        self.img_norm1 = plain_norm(width, config.eps)
        self.attn = CausalAttention(
            width,
            heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            qk_eps=config.eps,
            bias=False,
            rotate=rotate_pairs,
        )
        self.img_norm2 = plain_norm(width, config.eps)
        self.img_mlp = FeedForward(width, config.mlp_ratio * width)

    def forward(
        self, hidden: Tensor, text: Tensor, told: Tensor, still: Tensor, *places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``told`` and ``still`` are the modulations [B, 1, 4 C] of the picture and of words."""
        scale, gate, *feed = told.chunk(4, dim=-1)
        text_scale, text_gate, *text_feed = still.chunk(4, dim=-1)
        attended, read = self.attn(
            self.img_norm1(hidden) * (1 + scale), self.img_norm1(text) * (1 + text_scale), *places
        )
        hidden, text = hidden + gate.tanh() * attended, text + text_gate.tanh() * read
        (scale, gate), (text_scale, text_gate), words = feed, text_feed, text.shape[1]
        normal = self.img_norm2(text) * (1 + text_scale), self.img_norm2(hidden) * (1 + scale)
        fed = self.img_mlp(torch.cat(normal, dim=1))
        hidden = in_range(hidden + gate.tanh() * fed[:, words:])
        return hidden, in_range(text + text_gate.tanh() * fed[:, :words])


class ScaledNorm(nn.Module):
    """Tokens, normalised and scaled, before the last layer."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.norm = plain_norm(width, eps)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        scale = self.linear(F.silu(embedding))[:, None]
        output: Tensor = self.norm(hidden) * (1 + scale)
        return output


class QwenImage21Transformer2DModel(BlockModel):
    """Qwen-Image 2.1's denoiser of latents as tokens."""

    config_class = QwenImage21Config
    config: QwenImage21Config

    def build(self) -> None:
        config, width = self.config, self.config.width
        self.time_text_embed = TimeEmbedding(width)
        self.txt_in = TextProjection(config.context_in_dim, width, config.eps)
        self.img_in = nn.Linear(config.in_channels, width, bias=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width, bias=False))
        self.transformer_blocks = nn.ModuleList(
            QwenImage21Block(config) for _ in range(config.num_layers)
        )
        self.norm_out = ScaledNorm(width, config.eps)
        self.proj_out = nn.Linear(width, config.in_channels, bias=False)

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        shown: Tensor,
        text_bias: Tensor,
        picture_rotary: Tensor,
        text_rotary: Tensor,
        grid_rotary: Tensor,
    ) -> tuple[Streams, Any]:
        """``perfuse.models.qwen_image_21_transformer.description`` says what the inputs are."""
        hidden = self.img_in(sample)
        pixels = self.img_in(encoder_hidden_states[..., : self.config.in_channels])
        text = torch.where(shown[..., None] > 0, pixels, self.txt_in(encoder_hidden_states))
        embedding = self.time_text_embed(timestep, hidden.dtype)
        told = still = self.modulation(embedding)[:, None]
        if self.config.causal_condition:
            finished = self.time_text_embed(torch.zeros_like(timestep), hidden.dtype)
            still = self.modulation(finished)[:, None]
        batch, tokens = sample.shape[0], sample.shape[1]
        first = picture_rotary[:, :, None].expand(-1, -1, tokens, -1)
        table = torch.cat([first, grid_rotary[None].expand(batch, -1, -1, -1)], dim=-1)
        return (hidden, text), ((told, still, table, text_rotary, text_bias), embedding)

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden, text), (given, _) = streams, told
        for block in self.part("transformer_blocks", first, last):
            hidden, text = block(hidden, text, *given)
        return hidden, text

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        scale, *_ = told[0][0].chunk(4, dim=-1)
        normal: Tensor = block.img_norm1(streams[0]) * (1 + scale)
        return normal

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        output: Tensor = self.proj_out(self.norm_out(picture, told[1]))
        return output


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(QwenImage21Transformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(QwenImage21Transformer2DModel, spec, model)
