"""Sana's transformer: linear attention among pixels, attention to the text, a gated convolution.

Xie et al. 2024 (arXiv:2410.10629, section 2.2); Sana-Sprint is Chen et al. 2025 (arXiv:2503.09641).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import RMSNorm, plain_norm
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.embeddings import TextProjection, TimestepEmbedding, Timesteps
from perfuse.models.gated_convolution import GatedConvolution
from perfuse.models.half_precision import in_range
from perfuse.models.joint_attention import attend
from perfuse.models.patches import PatchEmbed, unpatchify
from perfuse.models.sana_transformer.description import SanaConfig
from perfuse.models.time_modulation import AdaLayerNormSingle, table_of
from perfuse.sources.weights import Weights

__all__ = ["SanaTransformer2DModel", "build", "wrap"]

#: Added to the logits of what is hidden; float16 holds it, and its exponential is 0.
_HIDDEN = -10000.0
#: What keeps a division by the sum of weights finite.
_TINY = 1e-15


class _Attention(nn.Module):
    """The layers of attention, with norms over all heads at once where a config asks for them."""

    def __init__(
        self, sana: SanaConfig, heads: int, head_dim: int, context: int, *, bias: bool
    ) -> None:
        super().__init__()
        inner, normed = heads * head_dim, sana.qk_norm is not None
        self.heads = heads
        self.to_q = nn.Linear(sana.width, inner, bias=bias)
        self.to_k = nn.Linear(context, inner, bias=bias)
        self.to_v = nn.Linear(context, inner, bias=bias)
        self.norm_q: nn.Module = RMSNorm(inner, 1e-5) if normed else nn.Identity()
        self.norm_k: nn.Module = RMSNorm(inner, 1e-5) if normed else nn.Identity()
        self.to_out = nn.ModuleList([nn.Linear(inner, sana.width), nn.Dropout(0.0)])

    def heads_of(self, hidden: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, H, N, D]."""
        joined = (
            self.norm_q(self.to_q(hidden)),
            self.norm_k(self.to_k(context)),
            self.to_v(context),
        )
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in joined)
        return query, key, value


class LinearAttention(_Attention):
    """Attention whose weights are products of rectified queries and keys: as much work a token."""

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (one.float() for one in self.heads_of(hidden, hidden))
        query, key = F.relu(query), F.relu(key)
        weighed = query @ (key.transpose(2, 3) @ value)
        total = query @ key.sum(dim=2)[..., None]
        joined = (weighed / (total + _TINY)).transpose(1, 2).flatten(2).to(hidden.dtype)
        return in_range(self.to_out[0](joined))


class TextAttention(_Attention):
    """Attention to the text's tokens."""

    def forward(self, hidden: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        output: Tensor = self.to_out[0](attend(*self.heads_of(hidden, text), bias))
        return output


class SanaBlock(nn.Module):
    """Linear attention, attention to the text, a gated convolution over the pixels."""

    def __init__(self, sana: SanaConfig) -> None:
        super().__init__()
        width = sana.width
        heads, head_dim = sana.num_cross_attention_heads, sana.cross_attention_head_dim
        assert heads is not None and head_dim is not None  # SanaConfig has seen to it
        self.scale_shift_table = table_of(6, width)
        self.norm1 = plain_norm(width, sana.norm_eps)
        self.attn1 = LinearAttention(
            sana,
            sana.num_attention_heads,
            sana.attention_head_dim,
            width,
            bias=sana.attention_bias,
        )
        self.norm2 = plain_norm(width, sana.norm_eps)
        self.attn2 = TextAttention(sana, heads, head_dim, width, bias=True)
        self.ff = GatedConvolution(width, sana.mlp_ratio)

    def forward(
        self, hidden: Tensor, told: Tensor, text: Tensor, bias: Tensor, size: tuple[int, int]
    ) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulations(told)
        hidden = hidden + gate * self.attn1(self.norm1(hidden) * (1 + scale) + shift)
        hidden = hidden + self.attn2(hidden, text, bias)
        normal = self.norm2(hidden) * (1 + scale_2) + shift_2
        picture = normal.transpose(1, 2).unflatten(2, size)
        output: Tensor = hidden + gate_2 * self.ff(picture).flatten(2).transpose(1, 2)
        return output

    def modulations(self, told: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the convolution, [B, 1, C]."""
        own = self.scale_shift_table[None] + told.unflatten(1, (6, -1))  # type: ignore[no-untyped-call]
        parts: tuple[Tensor, ...] = own.chunk(6, dim=1)
        return parts


class TimeGuidance(nn.Module):
    """The modulation of all blocks [B, 6 C] of a model that is told the guidance scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.waves = Timesteps(256, flip_sin_to_cos=True, freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(256, width)
        self.guidance_embedder = TimestepEmbedding(256, width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(
        self, timestep: Tensor, dtype: torch.dtype, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        told: Tensor = self.timestep_embedder(self.waves(timestep).to(dtype))
        told = told + self.guidance_embedder(self.waves(guidance).to(dtype))
        return self.linear(F.silu(told)), told


class ModulatedNorm(nn.Module):
    """A norm that the timestep shifts and scales, with a table of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = plain_norm(width)

    def forward(self, hidden: Tensor, told: Tensor, table: Tensor) -> Tensor:
        shift, scale = (table[None] + told[:, None]).chunk(2, dim=1)
        output: Tensor = self.norm(hidden) * (1 + scale) + shift
        return output


class SanaTransformer2DModel(BlockModel):
    """Sana's denoiser."""

    config_class = SanaConfig
    config: SanaConfig

    def build(self) -> None:
        sana, width = self.config, self.config.width
        self.patch_embed = PatchEmbed(sana.in_channels, width, sana.patch_size)
        self.time_embed: nn.Module = AdaLayerNormSingle(width)
        if sana.guidance_embeds:
            self.time_embed = TimeGuidance(width)
        act = nn.GELU(approximate="tanh")
        self.caption_projection = TextProjection(sana.caption_channels, width, act)
        self.caption_norm = RMSNorm(width, 1e-5)
        self.transformer_blocks = nn.ModuleList(SanaBlock(sana) for _ in range(sana.num_layers))
        self.scale_shift_table = table_of(2, width)
        self.norm_out = ModulatedNorm(width)
        self.proj_out = nn.Linear(width, sana.patch_size**2 * sana.predicted)

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        first: Tensor | None = None,
        second: Tensor | None = None,
    ) -> tuple[Streams, Any]:
        """The velocity at latents [B, C, h, w]; ``timestep`` is 0 to 1000.

        A distilled model is also told ``guidance`` float32 [B], and its timesteps are angles; after that,
        or alone, come ``positions`` [h / P, w / P, D], where the model knows places.
        """
        guidance, positions = (first, second) if self.config.guidance_embeds else (None, first)
        text, bias = self._text(encoder_hidden_states, encoder_attention_mask)
        patch = self.config.patch_size
        size = sample.shape[2] // patch, sample.shape[3] // patch
        turn = None
        if guidance is None:
            shared, told = self.time_embed(timestep * self.config.timestep_scale, sample.dtype)
        else:
            # x_t = cos(t) x0 + sin(t) n is a flow's x_s = (1 - s) x0 + s n, times √(s² + (1 - s)²);
            # see section 3.1 of the paper of Sana-Sprint.
            flow = torch.sin(timestep) / (torch.cos(timestep) + torch.sin(timestep))
            share = flow[:, None, None, None]
            length = torch.sqrt(share**2 + (1 - share) ** 2)
            sample = (sample * length).to(sample.dtype)
            shared, told = self.time_embed(flow, sample.dtype, guidance)
            turn = sample, share, length
        hidden = self.patch_embed(sample, positions)
        return (hidden,), ((shared, text, bias, size), told, turn)

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden,), (given, _, _) = streams, told
        for block in self.part("transformer_blocks", first, last):
            hidden = block(hidden, *given)
        return (hidden,)

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        (shared, *_), _, _ = told
        shift, scale, *_ = block.modulations(shared)
        normal: Tensor = block.norm1(streams[0]) * (1 + scale) + shift
        return normal

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        (*_, (height, width)), embedding, turn = told
        tokens = self.proj_out(self.norm_out(picture, embedding, self.scale_shift_table))
        velocity = unpatchify(tokens, height, width, self.config.patch_size)
        velocity = velocity[:, : self.config.in_channels]
        if turn is None:
            return velocity
        sample, share, length = turn
        turned = (1 - 2 * share) * sample + (1 - 2 * share + 2 * share**2) * velocity
        return (turned / length).to(sample.dtype)  # type: ignore[no-any-return]

    def _text(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The text's tokens as the blocks read them, and what hides some of them."""
        text = self.caption_norm(self.caption_projection(states))
        return text, (1 - mask.to(states.dtype))[:, None, None] * _HIDDEN


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(SanaTransformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(SanaTransformer2DModel, spec, model)
