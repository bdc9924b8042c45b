"""The transformer of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206) and 3.5."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroDual,
    modulate,
    plain_norm,
)
from perfuse.models.attention import FeedForward
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.embeddings import TimeTextEmbedding
from perfuse.models.joint_attention import JointAttention, SelfAttention, attend
from perfuse.models.patches import unpatchify
from perfuse.models.sd3_transformer.description import SD3Config
from perfuse.sources.weights import Weights

__all__ = ["Look", "SD3Transformer2DModel", "build", "wrap"]

#: What the picture's queries, keys and values [B, H, N, D], before their norms, see of image prompts
#: and of the picture itself, [B, N, H · D].
Look = Callable[[Tensor, Tensor, Tensor], Tensor]


class PatchEmbed(nn.Module):
    """Patches of [B, C, H, W] as tokens, with the learned or sinusoidal table of their places."""

    def __init__(self, sd3: SD3Config) -> None:
        super().__init__()
        patch, side = sd3.patch_size, sd3.pos_embed_max_size
        self.proj = nn.Conv2d(sd3.in_channels, sd3.width, patch, stride=patch)
        self.side = side
        self.register_buffer("pos_embed", torch.zeros(1, side * side, sd3.width))

    def forward(self, sample: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        tokens = self.proj(sample).flatten(2).transpose(1, 2)
        table: Tensor = self.pos_embed[0]  # type: ignore[index]
        places = (rows[:, None] * self.side + columns).flatten()
        # In this order tokens lie one after the other in memory, as layers like them.
        added: Tensor = table.index_select(0, places)[None] + tokens
        return added


class SD3Attention(JointAttention):
    """Joint attention of picture and text; what the picture sees of image prompts is added to it."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, text: Tensor, look: Look | None = None
    ) -> tuple[Tensor, Tensor | None]:
        raw = self.raw_heads(hidden)
        hidden, text = self.mixed(self.normed(*raw), text)
        return self.left(hidden if look is None else hidden + look(*raw), text)


class SD3SelfAttention(SelfAttention):
    """Attention within the picture, to which the same is added."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, look: Look | None = None
    ) -> Tensor:
        raw = self.raw_heads(hidden)
        joined = attend(*self.normed(*raw))
        return self.leave(joined if look is None else joined + look(*raw))


class JointTransformerBlock(nn.Module):
    """Joint attention of picture and text, then a feed-forward network for each.

    ``dual`` blocks attend within the picture, too (SD 3.5). The last block only reads the text.
    """

    streams: ClassVar[int] = 2

    def __init__(self, sd3: SD3Config, *, dual: bool, last: bool) -> None:
        super().__init__()
        width = sd3.width
        heads, size = sd3.num_attention_heads, sd3.attention_head_dim
        eps = 1e-6 if sd3.qk_norm is not None else None
        self.norm1 = AdaLayerNormZeroDual(width) if dual else AdaLayerNormZero(width)
        self.norm1_context: nn.Module = (
            AdaLayerNormContinuous(width) if last else AdaLayerNormZero(width)
        )
        self.attn = SD3Attention(
            width, heads=heads, head_dim=size, qk_eps=eps, text_first=False, reads_only=last
        )
        self.attn2 = (
            SD3SelfAttention(width, heads=heads, head_dim=size, qk_eps=eps) if dual else None
        )
        self.norm2 = plain_norm(width)
        self.ff = FeedForward(width, activation="gelu-approximate")
        if not last:
            self.norm2_context = plain_norm(width)
            self.ff_context = FeedForward(width, activation="gelu-approximate")
        self.last = last

    def forward(
        self, hidden: Tensor, text: Tensor, told: Tensor, looks: tuple[Look, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """``looks`` are of ``attn`` and, in a dual block, of ``attn2``."""
        normal, gate, *feed = self.norm1(hidden, told)
        own, others = looks[:1], looks[1:]
        if self.last:
            attended, _ = self.attn(normal, self.norm1_context(text, told), *own)
            return self._feed(hidden + gate[:, None] * attended, others, *feed), text
        text_normal, text_gate, shift, scale, gate_2 = self.norm1_context(text, told)
        attended, text_attended = self.attn(normal, text_normal, *own)
        hidden = self._feed(hidden + gate[:, None] * attended, others, *feed)
        text = text + text_gate[:, None] * text_attended
        inner = self.ff_context(modulate(self.norm2_context(text), shift, scale))
        return hidden, text + gate_2[:, None] * inner

    def _feed(
        self,
        hidden: Tensor,
        looks: tuple[Look, ...],
        shift: Tensor,
        scale: Tensor,
        gate: Tensor,
        *second: Tensor,
    ) -> Tensor:
        if self.attn2 is not None:
            normal, own_gate = second
            hidden = hidden + own_gate[:, None] * self.attn2(normal, *looks)
        inner: Tensor = self.ff(modulate(self.norm2(hidden), shift, scale))
        return hidden + gate[:, None] * inner


class SD3Transformer2DModel(BlockModel):
    """Stable Diffusion 3's denoiser."""

    config_class = SD3Config
    config: SD3Config

    def build(self) -> None:
        sd3 = self.config
        width = sd3.width
        self.pos_embed = PatchEmbed(sd3)
        self.time_text_embed = TimeTextEmbedding(width, pooled=sd3.pooled_projection_dim)
        self.context_embedder = nn.Linear(sd3.joint_attention_dim, width)
        self.transformer_blocks = nn.ModuleList(
            JointTransformerBlock(
                sd3, dual=i in sd3.dual_attention_layers, last=i == sd3.num_layers - 1
            )
            for i in range(sd3.num_layers)
        )
        self.norm_out = AdaLayerNormContinuous(width)
        self.proj_out = nn.Linear(width, sd3.patch_size**2 * sd3.drawn)

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        rows: Tensor,
        columns: Tensor,
        *,
        looks: tuple[tuple[Look, ...], ...] = (),
    ) -> tuple[Streams, Any]:
        """The velocity at latents [B, C, h, w]; ``rows`` and ``columns`` of the position table."""
        hidden = self.pos_embed(sample, rows, columns)
        told = self.time_text_embed(timestep, hidden.dtype, pooled=pooled_projections)
        text = self.context_embedder(encoder_hidden_states)
        patch = self.config.patch_size
        size = sample.shape[2] // patch, sample.shape[3] // patch
        return (hidden, text), (told, size, looks)

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden, text), (embedding, _, looks) = streams, told
        for i, block in self.numbered("transformer_blocks", first, last):
            hidden, text = block(hidden, text, embedding, looks[i] if looks else ())
        return hidden, text

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        normal, *_ = block.norm1(streams[0], told[0])
        return normal  # type: ignore[no-any-return]

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        embedding, (height, width), _ = told
        tokens = self.proj_out(self.norm_out(picture, embedding))
        return unpatchify(tokens, height, width, self.config.patch_size)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(SD3Transformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(SD3Transformer2DModel, spec, model)
