"""FLUX.2's transformer: FLUX.1's blocks, with one modulation for all blocks of a kind.

Black Forest Labs 2025 (https://github.com/black-forest-labs/flux2); blocks with two streams after
Esser et al. 2024, arXiv:2403.03206, parallel ones after Dehghani et al. 2023, arXiv:2302.05442.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import AdaLayerNormContinuous, RMSNorm, modulate, plain_norm
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.embeddings import Timesteps
from perfuse.models.flux2_transformer.description import Flux2Config
from perfuse.models.half_precision import in_range
from perfuse.models.joint_attention import JointAttention, attend
from perfuse.models.rotary import rotate_pairs
from perfuse.sources.weights import Weights

__all__ = ["Flux2Transformer2DModel", "build", "wrap"]


def gated(hidden: Tensor) -> Tensor:
    """Half of the channels, times the other half (Shazeer 2020, arXiv:2002.05202)."""
    gate, hidden = hidden.chunk(2, dim=-1)
    return F.silu(gate) * hidden


class FeedForward(nn.Module):
    """A gated linear unit between two linear layers."""

    def __init__(self, flux: Flux2Config) -> None:
        super().__init__()
        self.linear_in = nn.Linear(flux.width, 2 * flux.inner, bias=False)
        self.linear_out = nn.Linear(flux.inner, flux.width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.linear_out(gated(self.linear_in(hidden)))
        return output


class Modulation(nn.Module):
    """An embedding [B, C] to shifts, scales and gates, each [B, C]: three for each of ``sets``."""

    def __init__(self, width: int, sets: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3 * sets * width, bias=False)
        self.parts = 3 * sets

    def forward(self, told: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = self.linear(F.silu(told)).chunk(self.parts, dim=-1)
        return parts


class Flux2TransformerBlock(nn.Module):
    """Joint attention of text and picture, then a feed-forward network for each."""

    def __init__(self, flux: Flux2Config) -> None:
        super().__init__()
        width, eps = flux.width, flux.eps
        self.norm1, self.norm1_context = plain_norm(width, eps), plain_norm(width, eps)
        self.attn = JointAttention(
            width,
            heads=flux.num_attention_heads,
            head_dim=flux.attention_head_dim,
            qk_eps=eps,
            bias=False,
            rotate=rotate_pairs,
        )
        self.norm2, self.norm2_context = plain_norm(width, eps), plain_norm(width, eps)
        self.ff, self.ff_context = FeedForward(flux), FeedForward(flux)

    def forward(
        self,
        hidden: Tensor,
        text: Tensor,
        told: tuple[Tensor, ...],
        text_told: tuple[Tensor, ...],
        table: Tensor,
    ) -> tuple[Tensor, Tensor]:
        shift, scale, gate, shift_2, scale_2, gate_2 = told
        normal = modulate(self.norm1(hidden), shift, scale)
        text_shift, text_scale, text_gate, text_shift_2, text_scale_2, text_gate_2 = text_told
        text_normal = modulate(self.norm1_context(text), text_shift, text_scale)
        attended, text_attended = self.attn(normal, text_normal, table)
        hidden = hidden + gate[:, None] * attended
        text = text + text_gate[:, None] * text_attended
        fed = self.ff(modulate(self.norm2(hidden), shift_2, scale_2))
        text_fed = self.ff_context(modulate(self.norm2_context(text), text_shift_2, text_scale_2))
        text = text + text_gate_2[:, None] * text_fed
        return hidden + gate_2[:, None] * fed, in_range(text)


class ParallelAttention(nn.Module):
    """Attention and a feed-forward network side by side, with one layer before and one after."""

    def __init__(self, flux: Flux2Config) -> None:
        super().__init__()
        width = flux.width
        self.heads, self.width = flux.num_attention_heads, width
        self.to_qkv_mlp_proj = nn.Linear(width, 3 * width + 2 * flux.inner, bias=False)
        self.norm_q = RMSNorm(flux.attention_head_dim, flux.eps)
        self.norm_k = RMSNorm(flux.attention_head_dim, flux.eps)
        self.to_out = nn.Linear(width + flux.inner, width, bias=False)

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        joined = self.to_qkv_mlp_proj(hidden)
        states, inner = joined[..., : 3 * self.width], joined[..., 3 * self.width :]
        query, key, value = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in states.chunk(3, dim=-1)
        )
        query = rotate_pairs(self.norm_q(query), table)
        key = rotate_pairs(self.norm_k(key), table)
        output: Tensor = self.to_out(torch.cat([attend(query, key, value), gated(inner)], dim=-1))
        return output


class Flux2SingleTransformerBlock(nn.Module):
    """Text and picture as one sequence."""

    def __init__(self, flux: Flux2Config) -> None:
        super().__init__()
        self.norm = plain_norm(flux.width, flux.eps)
        self.attn = ParallelAttention(flux)

    def forward(self, hidden: Tensor, told: tuple[Tensor, ...], table: Tensor) -> Tensor:
        shift, scale, gate = told
        attended = self.attn(modulate(self.norm(hidden), shift, scale), table)
        return in_range(hidden + gate[:, None] * attended)


class Embedder(nn.Module):
    """Two layers over the sinusoids of a number: [B, W] to [B, C]."""

    def __init__(self, waves: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(waves, width, bias=False)
        self.linear_2 = nn.Linear(width, width, bias=False)

    def forward(self, waves: Tensor) -> Tensor:
        output: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return output


class TimeGuidance(nn.Module):
    """The timestep, and for a distilled model the guidance scale, in one [B, C]."""

    def __init__(self, flux: Flux2Config) -> None:
        super().__init__()
        waves = flux.timestep_guidance_channels
        self.waves = Timesteps(waves, flip_sin_to_cos=True, freq_shift=0)
        self.timestep_embedder = Embedder(waves, flux.width)
        if flux.guidance_embeds:
            self.guidance_embedder = Embedder(waves, flux.width)

    def forward(self, timestep: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        told: Tensor = self.timestep_embedder(self.waves(timestep).to(dtype))
        if guidance is None:
            return told
        scale: Tensor = self.guidance_embedder(self.waves(guidance * 1000).to(dtype))
        return told + scale


class Flux2Transformer2DModel(BlockModel):
    """FLUX.2's denoiser of packed latents."""

    config_class = Flux2Config
    config: Flux2Config
    rows = ("transformer_blocks", "single_transformer_blocks")

    def build(self) -> None:
        flux = self.config
        width = flux.width
        self.time_guidance_embed = TimeGuidance(flux)
        self.double_stream_modulation_img = Modulation(width, 2)
        self.double_stream_modulation_txt = Modulation(width, 2)
        self.single_stream_modulation = Modulation(width, 1)
        self.x_embedder = nn.Linear(flux.in_channels, width, bias=False)
        self.context_embedder = nn.Linear(flux.joint_attention_dim, width, bias=False)
        self.transformer_blocks = nn.ModuleList(
            Flux2TransformerBlock(flux) for _ in range(flux.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            Flux2SingleTransformerBlock(flux) for _ in range(flux.num_single_layers)
        )
        self.norm_out = AdaLayerNormContinuous(width, bias=False)
        out = flux.out_channels if flux.out_channels is not None else flux.in_channels
        self.proj_out = nn.Linear(width, out, bias=False)

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_rotary: Tensor,
        image_rotary: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Streams, Any]:
        """The velocity at tokens [B, N, C]; ``timestep`` is 0 to 1000, tables [2, N, D / 2]."""
        told = self.time_guidance_embed(timestep, guidance, sample.dtype)
        both = self.double_stream_modulation_img(told), self.double_stream_modulation_txt(told)
        hidden, text = self.x_embedder(sample), self.context_embedder(encoder_hidden_states)
        table = torch.cat([text_rotary, image_rotary], dim=1)
        return (hidden, text), (told, both, table)

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden, text), (embedding, both, table) = streams, told
        for block in self.part("transformer_blocks", first, last):
            hidden, text = block(hidden, text, *both, table)
        singles = self.part("single_transformer_blocks", first, last)
        if not singles:
            return hidden, text
        joined = torch.cat([text, hidden], dim=1)
        modulation = self.single_stream_modulation(embedding)
        for block in singles:
            joined = block(joined, modulation, table)
        length = text.shape[1]
        return joined[:, length:], joined[:, :length]

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        _, ((shift, scale, *_), _), _ = told
        return modulate(block.norm1(streams[0]), shift, scale)

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        output: Tensor = self.proj_out(self.norm_out(picture, told[0]))
        return output


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(Flux2Transformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(Flux2Transformer2DModel, spec, model)
