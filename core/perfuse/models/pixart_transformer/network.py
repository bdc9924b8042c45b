"""PixArt's transformer: DiT with cross-attention, and one modulation for all blocks.

Chen et al. 2023 (PixArt-α, arXiv:2310.00426, section 2.3) and 2024 (PixArt-Σ, arXiv:2403.04692).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import plain_norm
from perfuse.models.attention import Attention, FeedForward
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.embeddings import TextProjection
from perfuse.models.patches import PatchEmbed, unpatchify
from perfuse.models.pixart_transformer.description import PixArtConfig
from perfuse.models.time_modulation import AdaLayerNormSingle, table_of
from perfuse.sources.weights import Weights

__all__ = ["PixArtTransformer2DModel", "build", "wrap"]

#: Added to the logits of what is hidden; float16 holds it, and its exponential is 0.
_HIDDEN = -10000.0


class PixArtBlock(nn.Module):
    """Self-attention, cross-attention to the text, a feed-forward network."""

    streams: ClassVar[int] = 1

    def __init__(self, pixart: PixArtConfig) -> None:
        super().__init__()
        width, heads = pixart.width, pixart.num_attention_heads
        self.scale_shift_table = table_of(6, width)
        self.norm1 = plain_norm(width, pixart.norm_eps)
        self.attn1 = self._attention(pixart, heads, None)
        self.norm2 = plain_norm(width, pixart.norm_eps)
        self.attn2 = self._attention(pixart, heads, pixart.context_width)
        self.ff = FeedForward(width, activation=pixart.activation_fn)

    def _attention(self, pixart: PixArtConfig, heads: int, context: int | None) -> Attention:
        return Attention(
            pixart.width,
            heads=heads,
            head_dim=pixart.attention_head_dim,
            context_channels=context,
            bias=pixart.attention_bias,
            upcast=pixart.upcast_attention,
        )

    def forward(self, hidden: Tensor, told: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulations(told)
        hidden = hidden + gate * self.attn1(self.norm1(hidden) * (1 + scale) + shift)
        hidden = hidden + self.attn2(hidden, text, bias)
        output: Tensor = hidden + gate_2 * self.ff(self.norm2(hidden) * (1 + scale_2) + shift_2)
        return output

    def modulations(self, told: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the feed-forward network, [B, 1, C]."""
        own = self.scale_shift_table[None] + told.unflatten(1, (6, -1))  # type: ignore[no-untyped-call]
        parts: tuple[Tensor, ...] = own.chunk(6, dim=1)
        return parts


class PixArtTransformer2DModel(BlockModel):
    """PixArt's denoiser."""

    config_class = PixArtConfig
    config: PixArtConfig

    def build(self) -> None:
        pixart = self.config
        width = pixart.width
        out = pixart.in_channels if pixart.out_channels is None else pixart.out_channels
        self.pos_embed = PatchEmbed(pixart.in_channels, width, pixart.patch_size)
        self.transformer_blocks = nn.ModuleList(
            PixArtBlock(pixart) for _ in range(pixart.num_layers)
        )
        self.norm_out = plain_norm(width)
        self.scale_shift_table = table_of(2, width)
        self.proj_out = nn.Linear(width, pixart.patch_size**2 * out)
        self.adaln_single = AdaLayerNormSingle(width, told_size=pixart.told_size)
        self.caption_projection: nn.Module | None = None
        if pixart.caption_channels is not None:
            act = nn.GELU(approximate="tanh")
            self.caption_projection = TextProjection(pixart.caption_channels, width, act)

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        positions: Tensor,
        resolution: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
    ) -> tuple[Streams, Any]:
        """The noise in latents [B, C, h, w]; ``positions`` [h / P, w / P, D] of their patches."""
        bias = (1 - encoder_attention_mask.to(sample.dtype))[:, None, None] * _HIDDEN
        hidden = self.pos_embed(sample, positions)
        shared, told = self.adaln_single(timestep, hidden.dtype, resolution, aspect_ratio)
        text = encoder_hidden_states
        if self.caption_projection is not None:
            text = self.caption_projection(text)
        patch = self.config.patch_size
        size = sample.shape[2] // patch, sample.shape[3] // patch
        return (hidden,), ((shared, text, bias), told, size)

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden,), (given, _, _) = streams, told
        for block in self.part("transformer_blocks", first, last):
            hidden = block(hidden, *given)
        return (hidden,)

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        (shared, _, _), _, _ = told
        shift, scale, *_ = block.modulations(shared)
        normal: Tensor = block.norm1(streams[0]) * (1 + scale) + shift
        return normal

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        _, embedding, (height, width) = told
        shift, scale = (self.scale_shift_table[None] + embedding[:, None]).chunk(2, dim=1)
        tokens = self.proj_out(self.norm_out(picture) * (1 + scale) + shift)
        drawn = unpatchify(tokens, height, width, self.config.patch_size)
        return drawn[:, : self.config.in_channels]


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(PixArtTransformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(PixArtTransformer2DModel, spec, model)
