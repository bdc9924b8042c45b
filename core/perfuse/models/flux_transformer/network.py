"""FLUX.1's transformer: the blocks of Stable Diffusion 3, then parallel ones on one sequence.

Black Forest Labs 2024 (https://github.com/black-forest-labs/flux); blocks with two streams after
Esser et al. 2024, arXiv:2403.03206, parallel ones after Dehghani et al. 2023, arXiv:2302.05442.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    modulate,
    plain_norm,
)
from perfuse.models.attention import FeedForward
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.embeddings import TimeTextEmbedding
from perfuse.models.flux_attention import FluxAttention, Look
from perfuse.models.flux_transformer.description import FluxConfig
from perfuse.models.half_precision import in_range
from perfuse.models.joint_attention import SelfAttention
from perfuse.models.rotary import rotate_pairs
from perfuse.sources.weights import Weights

__all__ = ["FluxTransformer2DModel", "build", "wrap"]


class FluxTransformerBlock(nn.Module):
    """Joint attention of text and picture, then a feed-forward network for each."""

    streams: ClassVar[int] = 2

    def __init__(self, flux: FluxConfig) -> None:
        super().__init__()
        width = flux.width
        self.norm1 = AdaLayerNormZero(width)
        self.norm1_context = AdaLayerNormZero(width)
        self.attn = FluxAttention(
            width,
            heads=flux.num_attention_heads,
            head_dim=flux.attention_head_dim,
            rotate=rotate_pairs,
        )
        self.norm2 = plain_norm(width)
        self.ff = FeedForward(width, activation="gelu-approximate")
        self.norm2_context = plain_norm(width)
        self.ff_context = FeedForward(width, activation="gelu-approximate")

    def forward(
        self, hidden: Tensor, text: Tensor, told: Tensor, table: Tensor, look: Look | None = None
    ) -> tuple[Tensor, Tensor]:
        normal, gate, *feed = self.norm1(hidden, told)
        text_normal, text_gate, *text_feed = self.norm1_context(text, told)
        attended, text_attended, *seen = self.attn(normal, text_normal, table, None, look)
        hidden = hidden + gate[:, None] * attended
        text = text + text_gate[:, None] * text_attended
        shift, scale, gate = feed
        hidden = hidden + gate[:, None] * self.ff(modulate(self.norm2(hidden), shift, scale))
        hidden = sum(seen, hidden)
        shift, scale, gate = text_feed
        normal = modulate(self.norm2_context(text), shift, scale)
        return hidden, in_range(text + gate[:, None] * self.ff_context(normal))


class FluxSingleTransformerBlock(nn.Module):
    """Attention and the feed-forward network side by side, over text and picture as one sequence."""

    streams: ClassVar[int] = 1

    def __init__(self, flux: FluxConfig) -> None:
        super().__init__()
        width = flux.width
        self.norm = AdaLayerNormZeroSingle(width)
        self.proj_mlp = nn.Linear(width, 4 * width)
        self.proj_out = nn.Linear(5 * width, width)
        self.attn = SelfAttention(
            width,
            heads=flux.num_attention_heads,
            head_dim=flux.attention_head_dim,
            rotate=rotate_pairs,
            out=False,
        )

    def forward(self, hidden: Tensor, told: Tensor, table: Tensor) -> Tensor:
        normal, gate = self.norm(hidden, told)
        inner = F.gelu(self.proj_mlp(normal), approximate="tanh")
        joined = torch.cat([self.attn(normal, table), inner], dim=2)
        return in_range(hidden + gate[:, None] * self.proj_out(joined))


class FluxTransformer2DModel(BlockModel):
    """FLUX.1's denoiser of packed latents."""

    config_class = FluxConfig
    config: FluxConfig
    rows = ("transformer_blocks", "single_transformer_blocks")

    def build(self) -> None:
        flux = self.config
        width = flux.width
        self.time_text_embed = TimeTextEmbedding(
            width, pooled=flux.pooled_projection_dim, guidance=flux.guidance_embeds
        )
        self.context_embedder = nn.Linear(flux.joint_attention_dim, width)
        self.x_embedder = nn.Linear(flux.in_channels, width)
        self.transformer_blocks = nn.ModuleList(
            FluxTransformerBlock(flux) for _ in range(flux.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleTransformerBlock(flux) for _ in range(flux.num_single_layers)
        )
        self.norm_out = AdaLayerNormContinuous(width)
        out = flux.out_channels if flux.out_channels is not None else flux.in_channels
        self.proj_out = nn.Linear(width, out)

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        text_rotary: Tensor,
        image_rotary: Tensor,
        guidance: Tensor | None = None,
        *,
        looks: tuple[Look, ...] = (),
    ) -> tuple[Streams, Any]:
        """The velocity at tokens [B, N, C]; ``timestep`` is 0 to 1000, tables [2, N, D / 2]."""
        hidden = self.x_embedder(sample)
        told = self.time_text_embed(
            timestep,
            hidden.dtype,
            pooled=pooled_projections,
            guidance=None if guidance is None else guidance * 1000,
        )
        text = self.context_embedder(encoder_hidden_states)
        return (hidden, text), (told, torch.cat([text_rotary, image_rotary], dim=1), looks)

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden, text), (embedding, table, looks) = streams, told
        for i, block in self.numbered("transformer_blocks", first, last):
            hidden, text = block(hidden, text, embedding, table, looks[i] if looks else None)
        singles = self.part("single_transformer_blocks", first, last)
        if not singles:
            return hidden, text
        joined = torch.cat([text, hidden], dim=1)
        for block in singles:
            joined = block(joined, embedding, table)
        length = text.shape[1]
        return joined[:, length:], joined[:, :length]

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        normal, *_ = block.norm1(streams[0], told[0])
        return normal  # type: ignore[no-any-return]

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        output: Tensor = self.proj_out(self.norm_out(picture, told[0]))
        return output


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(FluxTransformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(FluxTransformer2DModel, spec, model)
