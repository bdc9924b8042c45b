"""Hunyuan-DiT's transformer (Li et al. 2024, arXiv:2405.08748, section 2.1).

Its first half of blocks leaves what it gave to its second half, as a U-Net does.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import AdaLayerNormContinuous
from perfuse.models.attention import FeedForward
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.embeddings import TextProjection, TimestepEmbedding, Timesteps
from perfuse.models.hunyuan_transformer.description import POOLING_HEADS, HunyuanDiTConfig
from perfuse.models.joint_attention import SelfAttention, attend
from perfuse.models.patches import PatchEmbed, unpatchify
from perfuse.models.rotary import rotate_pairs
from perfuse.sources.weights import Weights

__all__ = ["HunyuanDiT2DModel", "build", "wrap"]

_WAVES = 256
_EPS = 1e-6
#: Sizes that it is told: heights and widths of two, and where one was cut out of the other.
_SIZES = 6


class ShiftedNorm(nn.Module):
    """Tokens, normalised and shifted by the embedding of the timestep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        output: Tensor = self.norm(hidden) + self.linear(F.silu(embedding))[:, None]
        return output


class TextAttention(SelfAttention):
    """Attention of the picture's tokens, whose queries alone are turned, to those of the texts."""

    def forward(self, hidden: Tensor, text: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]
        query, key, value = self.heads_of(hidden, text)
        return self.leave(attend(self.turned(query, table), key, value))


class HunyuanDiTBlock(nn.Module):
    """Self-attention, attention to the texts, a feed-forward network; before them all a skip."""

    streams: ClassVar[int] = 1

    def __init__(self, hunyuan: HunyuanDiTConfig, *, skip: bool) -> None:
        super().__init__()
        width = hunyuan.hidden_size
        settings: dict[str, Any] = {
            "heads": hunyuan.num_attention_heads,
            "head_dim": hunyuan.attention_head_dim,
            "qk_eps": _EPS,
            "qk_norm": nn.LayerNorm,
            "rotate": rotate_pairs,
        }
        self.norm1 = ShiftedNorm(width)
        self.attn1 = SelfAttention(width, **settings)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.attn2 = TextAttention(width, context=hunyuan.cross_attention_dim, **settings)
        self.norm3 = nn.LayerNorm(width, eps=_EPS)
        inner = int(width * hunyuan.mlp_ratio)
        self.ff = FeedForward(width, activation=hunyuan.activation_fn, inner=inner)
        if skip:
            self.skip_norm = nn.LayerNorm(2 * width, eps=_EPS)
            self.skip_linear = nn.Linear(2 * width, width)

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor,
        text: Tensor,
        table: Tensor,
        skip: Tensor | None = None,
    ) -> Tensor:
        if skip is not None:
            hidden = self.skip_linear(self.skip_norm(torch.cat([hidden, skip], dim=-1)))
        hidden = hidden + self.attn1(self.norm1(hidden, embedding), table)
        hidden = hidden + self.attn2(self.norm2(hidden), text, table)
        output: Tensor = hidden + self.ff(self.norm3(hidden))
        return output


class AttentionPool(nn.Module):
    """What the mean of a text's states [B, S, C] finds in it and them: [B, P]."""

    def __init__(self, length: int, channels: int, pooled: int) -> None:
        super().__init__()
        places = torch.randn(length + 1, channels) / channels**0.5
        self.positional_embedding = nn.Parameter(places)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, pooled)

    def forward(self, states: Tensor) -> Tensor:
        tokens = torch.cat([states.mean(dim=1, keepdim=True), states], dim=1)
        tokens = tokens + self.positional_embedding
        query, key, value = (
            heads.unflatten(-1, (POOLING_HEADS, -1)).transpose(1, 2)
            for heads in (self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens))
        )
        output: Tensor = self.c_proj(attend(query, key, value)[:, 0])
        return output


class TimeTextSizes(nn.Module):
    """The timestep, T5's text and, of versions before 1.2, sizes and a style as one vector [B, C]."""

    def __init__(self, hunyuan: HunyuanDiTConfig) -> None:
        super().__init__()
        width, pooled = hunyuan.hidden_size, hunyuan.pooled_projection_dim
        self.time_proj = Timesteps(_WAVES, flip_sin_to_cos=True, freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(_WAVES, width)
        self.pooler = AttentionPool(hunyuan.text_len_t5, hunyuan.cross_attention_dim_t5, pooled)
        told = pooled
        if hunyuan.use_style_cond_and_image_meta_size:
            self.style_embedder = nn.Embedding(1, width)
            told += _SIZES * _WAVES + width
        self.extra_embedder = TextProjection(told, width, nn.SiLU(), inner=4 * width)

    def forward(self, timestep: Tensor, states: Tensor, sizes: Tensor | None) -> Tensor:
        parts = [self.pooler(states)]
        if sizes is not None:
            # Not by a reshape to [batch, -1], whose second size OpenVINO's PyTorch frontend gets wrong.
            waves: Tensor = self.time_proj(sizes.flatten()).unflatten(0, (-1, _SIZES)).flatten(1)
            style = self.style_embedder.weight.expand(sizes.shape[0], -1)
            parts += [waves.to(states.dtype), style]
        told = self.timestep_embedder(self.time_proj(timestep).to(states.dtype))
        output: Tensor = told + self.extra_embedder(torch.cat(parts, dim=1))
        return output


class HunyuanDiT2DModel(BlockModel):
    """Hunyuan-DiT's denoiser."""

    config_class = HunyuanDiTConfig
    config: HunyuanDiTConfig
    rows = ("blocks",)

    def build(self) -> None:
        hunyuan = self.config
        width, read, read_t5 = (
            hunyuan.hidden_size,
            hunyuan.cross_attention_dim,
            hunyuan.cross_attention_dim_t5,
        )
        out = hunyuan.in_channels * (2 if hunyuan.learn_sigma else 1)
        self.text_embedder = TextProjection(read_t5, read, nn.SiLU(), inner=4 * read_t5)
        self.text_embedding_padding = nn.Parameter(
            torch.randn(hunyuan.text_len + hunyuan.text_len_t5, read)
        )
        self.pos_embed = PatchEmbed(hunyuan.in_channels, width, hunyuan.patch_size)
        self.time_extra_emb = TimeTextSizes(hunyuan)
        self.blocks = nn.ModuleList(
            HunyuanDiTBlock(hunyuan, skip=number > self._middle)
            for number in range(hunyuan.num_layers)
        )
        self.norm_out = AdaLayerNormContinuous(width)
        self.proj_out = nn.Linear(width, hunyuan.patch_size**2 * out)

    @property
    def _middle(self) -> int:
        """The block after which each takes what one before it gave, the last of these first."""
        return self.config.num_layers // 2

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embedding_mask: Tensor,
        encoder_hidden_states_t5: Tensor,
        text_embedding_mask_t5: Tensor,
        row_rotary: Tensor,
        column_rotary: Tensor,
        image_meta_size: Tensor | None = None,
    ) -> tuple[Streams, Any]:
        """The velocity of latents [B, C, h, w]; masks are 1 for tokens, tables [2, h, D / 4]."""
        patch = self.config.patch_size
        height, width = sample.shape[2] // patch, sample.shape[3] // patch
        hidden = self.pos_embed(sample)
        embedding = self.time_extra_emb(timestep, encoder_hidden_states_t5, image_meta_size)
        states = [encoder_hidden_states, self.text_embedder(encoder_hidden_states_t5)]
        seen = torch.cat([text_embedding_mask, text_embedding_mask_t5], dim=1)[..., None] != 0
        text = torch.where(seen, torch.cat(states, dim=1), self.text_embedding_padding)
        # Columns come first in a head's channels.
        sides = (column_rotary[:, None], row_rotary[:, :, None])
        table = torch.cat([side.expand(-1, height, width, -1) for side in sides], dim=-1)
        return (hidden,), ((embedding, text, table.flatten(1, 2)), (height, width))

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden, *skips), (given, _) = streams, told
        for number, block in self.numbered("blocks", first, last):
            skip = skips.pop() if number > self._middle else None
            hidden = block(hidden, *given, skip)
            if number < self._middle - 1:
                skips.append(hidden)
        return (hidden, *skips)

    def apart(self, streams: Streams, told: Any) -> Streams:
        return streams[:1]

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.blocks[0]
        normal: Tensor = block.norm1(streams[0], told[0][0])
        return normal

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        (embedding, _, _), (height, width) = told
        tokens = self.proj_out(self.norm_out(picture, embedding))
        drawn = unpatchify(tokens, height, width, self.config.patch_size)
        return drawn[:, : self.config.in_channels]


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(HunyuanDiT2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(HunyuanDiT2DModel, spec, model)
