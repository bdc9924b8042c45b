"""AuraFlow's transformer (https://blog.fal.ai/auraflow): few blocks of two streams, many of one.

In both, attention is added for the feed-forward network alone: what a block adds to its tokens is that
network's.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import AdaLayerNormZero, modulate, plain_norm
from perfuse.models.aura_flow_transformer.description import REGISTERS, AuraFlowConfig
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.embeddings import TimestepEmbedding, Timesteps
from perfuse.models.joint_attention import JointAttention, SelfAttention
from perfuse.models.patches import patchify, unpatchify
from perfuse.sources.weights import Weights

__all__ = ["AuraFlowTransformer2DModel", "build", "wrap"]

_WAVES = 256
_EPS = 1e-5


class FeedForward(nn.Module):
    """A gated linear unit between two linear layers (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, aura: AuraFlowConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(aura.width, aura.inner, bias=False)
        self.linear_2 = nn.Linear(aura.width, aura.inner, bias=False)
        self.out_projection = nn.Linear(aura.inner, aura.width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.out_projection(F.silu(self.linear_1(hidden)) * self.linear_2(hidden))
        return output


def fed(norm: nn.Module, feed: nn.Module, hidden: Tensor, *told: Tensor) -> Tensor:
    """What the feed-forward network adds to tokens, of them and attention."""
    attended, gate, shift, scale, gate_2 = told
    normal = norm(hidden + gate[:, None] * attended)
    output: Tensor = gate_2[:, None] * feed(modulate(normal, shift, scale))
    return output


class AuraFlowJointTransformerBlock(nn.Module):
    """Attention of text and picture to both, and a feed-forward network for each."""

    streams: ClassVar[int] = 2

    def __init__(self, aura: AuraFlowConfig) -> None:
        super().__init__()
        width = aura.width
        self.norm1 = AdaLayerNormZero(width, bias=False, eps=_EPS)
        self.norm1_context = AdaLayerNormZero(width, bias=False, eps=_EPS)
        self.attn = JointAttention(
            width,
            heads=aura.num_attention_heads,
            head_dim=aura.attention_head_dim,
            qk_eps=_EPS,
            qk_norm=plain_norm,
            bias=False,
        )
        self.norm2, self.ff = plain_norm(width, _EPS), FeedForward(aura)
        self.norm2_context, self.ff_context = plain_norm(width, _EPS), FeedForward(aura)

    def forward(self, hidden: Tensor, text: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        normal, *told = self.norm1(hidden, embedding)
        text_normal, *text_told = self.norm1_context(text, embedding)
        attended, read = self.attn(normal, text_normal)
        hidden = hidden + fed(self.norm2, self.ff, hidden, attended, *told)
        text = text + fed(self.norm2_context, self.ff_context, text, read, *text_told)
        return hidden, text


class AuraFlowSingleTransformerBlock(nn.Module):
    """The same over text and picture as one sequence."""

    streams: ClassVar[int] = 1

    def __init__(self, aura: AuraFlowConfig) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(aura.width, bias=False, eps=_EPS)
        self.attn = SelfAttention(
            aura.width,
            heads=aura.num_attention_heads,
            head_dim=aura.attention_head_dim,
            qk_eps=_EPS,
            qk_norm=plain_norm,
            bias=False,
        )
        self.norm2, self.ff = plain_norm(aura.width, _EPS), FeedForward(aura)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        normal, *told = self.norm1(hidden, embedding)
        return hidden + fed(self.norm2, self.ff, hidden, self.attn(normal), *told)


class Patches(nn.Module):
    """Patches of [B, C, H, W] as tokens, with a learned vector for each of their places."""

    def __init__(self, aura: AuraFlowConfig) -> None:
        super().__init__()
        self.patch = aura.patch_size
        self.proj = nn.Linear(self.patch**2 * aura.in_channels, aura.width)
        self.pos_embed = nn.Parameter(torch.randn(1, aura.pos_embed_max_size, aura.width) * 0.1)

    def forward(self, sample: Tensor, places: Tensor) -> Tensor:
        tokens: Tensor = self.proj(patchify(sample, self.patch, channels_first=True))
        return tokens + F.embedding(places.flatten(), self.pos_embed[0])


class LastModulation(nn.Module):
    """Tokens, scaled and shifted before the last layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width, bias=False)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(embedding)).chunk(2, dim=1)
        return modulate(hidden, shift, scale)


class AuraFlowTransformer2DModel(BlockModel):
    """AuraFlow's denoiser."""

    config_class = AuraFlowConfig
    config: AuraFlowConfig
    rows = ("joint_transformer_blocks", "single_transformer_blocks")

    def build(self) -> None:
        aura, width = self.config, self.config.width
        self.pos_embed = Patches(aura)
        self.context_embedder = nn.Linear(aura.joint_attention_dim, width, bias=False)
        self.time_step_embed = Timesteps(_WAVES, flip_sin_to_cos=True, freq_shift=0)
        self.time_step_proj = TimestepEmbedding(_WAVES, width)
        self.joint_transformer_blocks = nn.ModuleList(
            AuraFlowJointTransformerBlock(aura) for _ in range(aura.num_mmdit_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            AuraFlowSingleTransformerBlock(aura) for _ in range(aura.num_single_dit_layers)
        )
        self.norm_out = LastModulation(width)
        self.proj_out = nn.Linear(width, aura.patch_size**2 * aura.in_channels, bias=False)
        self.register_tokens = nn.Parameter(torch.randn(1, REGISTERS, width) * 0.02)

    def begin(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, places: Tensor
    ) -> tuple[Streams, Any]:
        """The velocity of latents [B, C, h, w]; ``timestep`` is 0 to 1000."""
        hidden = self.pos_embed(sample, places)
        embedding = self.time_step_proj(self.time_step_embed(timestep).to(hidden.dtype))
        registers = self.register_tokens.expand(sample.shape[0], -1, -1)
        text = torch.cat([registers, self.context_embedder(encoder_hidden_states)], dim=1)
        patch = self.config.patch_size
        return (hidden, text), (embedding, (sample.shape[2] // patch, sample.shape[3] // patch))

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden, text), (embedding, _) = streams, told
        for block in self.part("joint_transformer_blocks", first, last):
            hidden, text = block(hidden, text, embedding)
        singles = self.part("single_transformer_blocks", first, last)
        if not singles:
            return hidden, text
        joined = torch.cat([text, hidden], dim=1)
        for block in singles:
            joined = block(joined, embedding)
        length = text.shape[1]
        return joined[:, length:], joined[:, :length]

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.joint_transformer_blocks[0]
        normal, *_ = block.norm1(streams[0], told[0])
        return normal  # type: ignore[no-any-return]

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        embedding, (height, width) = told
        tokens = self.proj_out(self.norm_out(picture, embedding))
        return unpatchify(tokens, height, width, self.config.patch_size)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(AuraFlowTransformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(AuraFlowTransformer2DModel, spec, model)
