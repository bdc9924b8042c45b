"""Lumina 2's transformer: a caption and a picture in one stream (Qin et al. 2025, arXiv:2503.21758)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import RMSNorm, plain_norm
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.caption_rotary import caption_table, picture_table
from perfuse.models.embeddings import TimestepEmbedding, Timesteps
from perfuse.models.joint_attention import SelfAttention
from perfuse.models.lumina2_transformer.description import Lumina2Config
from perfuse.models.patches import patchify, unpatchify
from perfuse.models.rotary import rotate_pairs
from perfuse.sources.weights import Weights

__all__ = ["Lumina2Transformer2DModel", "build", "wrap"]

#: The width of what modulates the blocks, unless they are narrower.
_MODULATION = 1024
_WAVES = 256
#: The scheduler's timesteps are thousandths of the noise's share.
_TRAINED_STEPS = 1000


class FeedForward(nn.Module):
    """A gated linear unit between two linear layers (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, lumina: Lumina2Config) -> None:
        super().__init__()
        width, inner = lumina.hidden_size, lumina.inner
        self.linear_1 = nn.Linear(width, inner, bias=False)
        self.linear_2 = nn.Linear(inner, width, bias=False)
        self.linear_3 = nn.Linear(width, inner, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.linear_2(F.silu(self.linear_1(hidden)) * self.linear_3(hidden))
        return output


class ModulatedNorm(nn.Module):
    """An RMS norm that is scaled, and a gate, a scale and a gate for what follows, each [B, 1, C]."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(min(width, _MODULATION), 4 * width)
        self.norm = RMSNorm(width, eps)

    def forward(self, hidden: Tensor, told: Tensor) -> tuple[Tensor, ...]:
        scale, *others = self.linear(F.silu(told))[:, None].chunk(4, dim=-1)
        return self.norm(hidden) * (1 + scale), *others


class Lumina2Block(nn.Module):
    """Attention and a feed-forward network between norms; modulated ones are scaled and gated."""

    streams: ClassVar[int] = 1

    def __init__(self, lumina: Lumina2Config, *, modulated: bool) -> None:
        super().__init__()
        width, eps, heads = lumina.hidden_size, lumina.norm_eps, lumina.num_attention_heads
        self.attn = SelfAttention(
            width,
            heads=heads,
            head_dim=width // heads,
            qk_eps=1e-5,
            bias=False,
            rotate=rotate_pairs,
            kv_heads=lumina.num_kv_heads,
        )
        self.feed_forward = FeedForward(lumina)
        self.norm1: nn.Module = ModulatedNorm(width, eps) if modulated else RMSNorm(width, eps)
        self.ffn_norm1 = RMSNorm(width, eps)
        self.norm2, self.ffn_norm2 = RMSNorm(width, eps), RMSNorm(width, eps)
        self.modulated = modulated

    def forward(
        self, hidden: Tensor, table: Tensor, bias: Tensor | None, told: Tensor | None = None
    ) -> Tensor:
        if not self.modulated:
            hidden = hidden + self.norm2(self.attn(self.norm1(hidden), table, bias))
            plain: Tensor = self.ffn_norm2(self.feed_forward(self.ffn_norm1(hidden)))
            return hidden + plain
        normal, gate, scale, gate_2 = self.norm1(hidden, told)
        hidden = hidden + gate.tanh() * self.norm2(self.attn(normal, table, bias))
        fed = self.feed_forward(self.ffn_norm1(hidden) * (1 + scale))
        output: Tensor = hidden + gate_2.tanh() * self.ffn_norm2(fed)
        return output


class TimeCaption(nn.Module):
    """The timestep as an embedding [B, E], and the text's states as tokens [B, S, C]."""

    def __init__(self, lumina: Lumina2Config) -> None:
        super().__init__()
        width, states = lumina.hidden_size, lumina.cap_feat_dim
        self.waves = Timesteps(_WAVES, flip_sin_to_cos=True, freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(_WAVES, min(width, _MODULATION))
        self.caption_embedder = nn.Sequential(
            RMSNorm(states, lumina.norm_eps), nn.Linear(states, width)
        )

    def forward(self, timestep: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        told: Tensor = self.timestep_embedder(self.waves(timestep).to(states.dtype))
        return told, self.caption_embedder(states)


class LastNorm(nn.Module):
    """Tokens, normalised and scaled, to the pixels of their patches."""

    def __init__(self, width: int, pixels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(min(width, _MODULATION), width)
        self.norm = plain_norm(width)
        self.linear_2 = nn.Linear(width, pixels)

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        scale = self.linear_1(F.silu(told))[:, None]
        output: Tensor = self.linear_2(self.norm(hidden) * (1 + scale))
        return output


class Lumina2Transformer2DModel(BlockModel):
    """Lumina 2's denoiser."""

    config_class = Lumina2Config
    config: Lumina2Config
    rows = ("layers",)

    def build(self) -> None:
        lumina = self.config
        pixels = lumina.patch_size**2 * lumina.in_channels
        self.x_embedder = nn.Linear(pixels, lumina.hidden_size)
        self.time_caption_embed = TimeCaption(lumina)
        self.noise_refiner = self._blocks(lumina.num_refiner_layers)
        self.context_refiner = self._blocks(lumina.num_refiner_layers, modulated=False)
        self.layers = self._blocks(lumina.num_layers)
        self.norm_out = LastNorm(lumina.hidden_size, pixels)

    def _blocks(self, count: int, *, modulated: bool = True) -> nn.ModuleList:
        return nn.ModuleList(Lumina2Block(self.config, modulated=modulated) for _ in range(count))

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        caption_bias: Tensor,
        picture_rotary: Tensor,
        caption_rotary: Tensor,
        row_rotary: Tensor,
        column_rotary: Tensor,
    ) -> tuple[Streams, Any]:
        """``perfuse.models.lumina2_transformer.description`` says what the inputs are."""
        patch, others = self.config.patch_size, sum(self.config.axes_dim_rope[1:])
        signal = 1 - timestep / _TRAINED_STEPS
        told, text = self.time_caption_embed(signal, encoder_hidden_states)
        text_places = caption_table(caption_rotary, text.shape[0], others)
        for block in self.context_refiner:
            text = block(text, text_places, caption_bias[:, None, None])

        picture = self.x_embedder(patchify(sample, patch))
        places = picture_table(picture_rotary, row_rotary, column_rotary)
        for block in self.noise_refiner:
            picture = block(picture, places, None, told)

        hidden = torch.cat([text, picture], dim=1)
        places = torch.cat([text_places, places], dim=2)
        free = torch.zeros_like(picture[..., 0])
        bias = torch.cat([caption_bias, free], dim=1)[:, None, None]
        height, width = (size // patch for size in sample.shape[2:])
        return (hidden,), ((places, bias, told), text.shape[1], (height, width))

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden,), (given, _, _) = streams, told
        for block in self.part("layers", first, last):
            hidden = block(hidden, *given)
        return (hidden,)

    def apart(self, streams: Streams, told: Any) -> Streams:
        (hidden,), (_, words, _) = streams, told
        return hidden[:, words:], hidden[:, :words]

    def together(self, tokens: Streams, told: Any) -> Streams:
        return (torch.cat(tokens[::-1], dim=1),)

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.layers[0]
        (_, _, embedding), _, _ = told
        normal, *_ = block.norm1(streams[0], embedding)
        return normal  # type: ignore[no-any-return]

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        (_, _, embedding), _, (height, width) = told
        tokens = self.norm_out(picture, embedding)
        return -unpatchify(tokens, height, width, self.config.patch_size)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(Lumina2Transformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(Lumina2Transformer2DModel, spec, model)
