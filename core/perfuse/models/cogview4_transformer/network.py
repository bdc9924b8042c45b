"""CogView 4's transformer: text and picture with the same weights, and modulations for each."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import modulate, plain_norm
from perfuse.models.attention import FeedForward
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.cogview4_transformer.description import CogView4Config
from perfuse.models.embeddings import TextProjection, TimestepEmbedding, Timesteps
from perfuse.models.joint_attention import SelfAttention, attend
from perfuse.models.patches import patchify, unpatchify
from perfuse.models.rotary import rotate_halves
from perfuse.sources.weights import Weights

__all__ = ["CogView4Transformer2DModel", "build", "wrap"]

_EPS = 1e-5


class BothAttention(SelfAttention):
    """Attention of text and picture to both, of which the picture alone has places."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, text: Tensor, table: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        query, key, value = self.heads_of(hidden)
        own = self.turned(query, table), self.turned(key, table), value
        pairs = zip(self.heads_of(text), own, strict=True)
        heads = [torch.cat([words, picture], dim=2) for words, picture in pairs]
        joined = self.leave(attend(heads[0], heads[1], heads[2], bias))
        return joined[:, text.shape[1] :], joined[:, : text.shape[1]]


class BothNorms(nn.Module):
    """Tokens of the picture and of the text, normalised, and six modulations of each."""

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.norm, self.norm_context = plain_norm(width, _EPS), plain_norm(width, _EPS)
        self.linear = nn.Linear(embedding, 12 * width)

    def modulations(self, told: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Shift, scale and gate of attention, then of the network: the picture's, the text's."""
        parts: tuple[Tensor, ...] = self.linear(told).chunk(12, dim=1)
        return parts[::2], parts[1::2]


class CogView4Block(nn.Module):
    """Attention, then a feed-forward network that text and picture share."""

    streams: ClassVar[int] = 2

    def __init__(self, cogview: CogView4Config) -> None:
        super().__init__()
        width = cogview.width
        self.norm1 = BothNorms(cogview.time_embed_dim, width)
        self.attn1 = BothAttention(
            width,
            heads=cogview.num_attention_heads,
            head_dim=cogview.attention_head_dim,
            qk_eps=_EPS,
            qk_norm=plain_norm,
            rotate=rotate_halves,
        )
        self.norm2, self.norm2_context = plain_norm(width, _EPS), plain_norm(width, _EPS)
        self.ff = FeedForward(width, activation="gelu-approximate")

    def forward(
        self, hidden: Tensor, text: Tensor, told: Tensor, table: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        (shift, scale, gate, *feed), (text_shift, text_scale, text_gate, *text_feed) = (
            self.norm1.modulations(told)
        )
        attended, read = self.attn1(
            modulate(self.norm1.norm(hidden), shift, scale),
            modulate(self.norm1.norm_context(text), text_shift, text_scale),
            table,
            bias,
        )
        hidden = hidden + gate[:, None] * attended
        text = text + text_gate[:, None] * read
        shift, scale, gate = feed
        hidden = hidden + gate[:, None] * self.ff(modulate(self.norm2(hidden), shift, scale))
        shift, scale, gate = text_feed
        text = text + gate[:, None] * self.ff(modulate(self.norm2_context(text), shift, scale))
        return hidden, text


class PatchesAndText(nn.Module):
    """Patches of latents, and states of text, as tokens."""

    def __init__(self, cogview: CogView4Config) -> None:
        super().__init__()
        self.proj = nn.Linear(cogview.patch_size**2 * cogview.in_channels, cogview.width)
        self.text_proj = nn.Linear(cogview.text_embed_dim, cogview.width)


class TimeSizes(nn.Module):
    """The timestep and six numbers of the picture's size as one vector [B, E]."""

    def __init__(self, cogview: CogView4Config) -> None:
        super().__init__()
        waves, each = cogview.width, cogview.condition_dim
        self.time_proj = Timesteps(waves, flip_sin_to_cos=True, freq_shift=0)
        self.condition_proj = Timesteps(each, flip_sin_to_cos=True, freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(waves, cogview.time_embed_dim)
        self.condition_embedder = TextProjection(6 * each, cogview.time_embed_dim, nn.SiLU())

    def forward(self, timestep: Tensor, sizes: Tensor, dtype: torch.dtype) -> Tensor:
        # Not by a reshape to [batch, -1], whose second size OpenVINO's PyTorch frontend gets wrong.
        sides: Tensor = self.condition_proj(sizes.flatten()).unflatten(0, (-1, 6))
        told = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        output: Tensor = told + self.condition_embedder(sides.flatten(1).to(dtype))
        return output


class LastNorm(nn.Module):
    """Tokens, normalised, scaled and shifted before the last layer."""

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, 2 * width)
        self.norm = plain_norm(width, _EPS)

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.linear(told).chunk(2, dim=1)
        return modulate(self.norm(hidden), shift, scale)


class CogView4Transformer2DModel(BlockModel):
    """CogView 4's denoiser."""

    config_class = CogView4Config
    config: CogView4Config

    def build(self) -> None:
        cogview = self.config
        self.patch_embed = PatchesAndText(cogview)
        self.time_condition_embed = TimeSizes(cogview)
        self.transformer_blocks = nn.ModuleList(
            CogView4Block(cogview) for _ in range(cogview.num_layers)
        )
        self.norm_out = LastNorm(cogview.time_embed_dim, cogview.width)
        self.proj_out = nn.Linear(cogview.width, cogview.patch_size**2 * cogview.out_channels)

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_bias: Tensor,
        sizes: Tensor,
        row_rotary: Tensor,
        column_rotary: Tensor,
    ) -> tuple[Streams, Any]:
        """The velocity of latents [B, C, h, w]; ``timestep`` is 0 to 1000, tables [2, h, D / 4]."""
        patch = self.config.patch_size
        height, width = sample.shape[2] // patch, sample.shape[3] // patch
        hidden = self.patch_embed.proj(patchify(sample, patch, channels_first=True))
        text = self.patch_embed.text_proj(encoder_hidden_states)
        told = F.silu(self.time_condition_embed(timestep, sizes, hidden.dtype))
        sides = (row_rotary[:, :, None], column_rotary[:, None])
        table = torch.cat([side.expand(-1, height, width, -1) for side in sides], dim=-1)
        free = torch.zeros_like(hidden[..., 0])
        bias = torch.cat([text_bias, free], dim=1)[:, None, None]
        return (hidden, text), ((told, table.flatten(1, 2), bias), (height, width))

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden, text), (given, _) = streams, told
        for block in self.part("transformer_blocks", first, last):
            hidden, text = block(hidden, text, *given)
        return hidden, text

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        (shift, scale, *_), _ = block.norm1.modulations(told[0][0])
        return modulate(block.norm1.norm(streams[0]), shift, scale)

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        (embedding, _, _), (height, width) = told
        tokens = self.proj_out(self.norm_out(picture, embedding))
        return unpatchify(tokens, height, width, self.config.patch_size, channels_first=True)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(CogView4Transformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(CogView4Transformer2DModel, spec, model)
