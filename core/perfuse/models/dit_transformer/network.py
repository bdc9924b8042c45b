"""DiT's transformer, told the timestep and a class by its norms (Peebles and Xie, arXiv:2212.09748)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import AdaLayerNormZero, modulate, plain_norm
from perfuse.models.attention import Attention, FeedForward
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.dit_transformer.description import DiTConfig
from perfuse.models.embeddings import TimestepEmbedding, Timesteps
from perfuse.models.patches import PatchEmbed, unpatchify
from perfuse.sources.weights import Weights

__all__ = ["DiTTransformer2DModel", "build", "wrap"]

_WAVES = 256


class Classes(nn.Module):
    """A vector for each class, and one for none."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(count + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        output: Tensor = self.embedding_table(labels)
        return output


class TimeClassEmbedding(nn.Module):
    """The sinusoids of the timestep and the class as one vector [B, C]."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(_WAVES, width)
        self.class_embedder = Classes(count, width)

    def forward(self, waves: Tensor, labels: Tensor) -> Tensor:
        output: Tensor = self.timestep_embedder(waves) + self.class_embedder(labels)
        return output


class TimeClassNorm(AdaLayerNormZero):
    """Tokens to tokens and modulations, by an embedding of its own."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__(width)
        self.emb = TimeClassEmbedding(count, width)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, waves: Tensor, labels: Tensor
    ) -> tuple[Tensor, ...]:
        return super().forward(hidden, self.emb(waves, labels))


class DiTBlock(nn.Module):
    """Self-attention and a feed-forward network."""

    streams: ClassVar[int] = 1

    def __init__(self, dit: DiTConfig) -> None:
        super().__init__()
        width = dit.width
        self.norm1 = TimeClassNorm(dit.num_embeds_ada_norm, width)
        self.attn1 = Attention(
            width,
            heads=dit.num_attention_heads,
            head_dim=dit.attention_head_dim,
            bias=dit.attention_bias,
            upcast=dit.upcast_attention,
        )
        self.norm3 = plain_norm(width, dit.norm_eps)
        self.ff = FeedForward(width, activation=dit.activation_fn)

    def forward(self, hidden: Tensor, waves: Tensor, labels: Tensor) -> Tensor:
        normal, gate, shift, scale, gate_2 = self.norm1(hidden, waves, labels)
        hidden = hidden + gate[:, None] * self.attn1(normal)
        fed = self.ff(modulate(self.norm3(hidden), shift, scale))
        output: Tensor = hidden + gate_2[:, None] * fed
        return output


class DiTTransformer2DModel(BlockModel):
    """DiT's denoiser."""

    config_class = DiTConfig
    config: DiTConfig

    def build(self) -> None:
        dit, width = self.config, self.config.width
        out = dit.in_channels if dit.out_channels is None else dit.out_channels
        self.waves = Timesteps(_WAVES, flip_sin_to_cos=True, freq_shift=1)
        self.pos_embed = PatchEmbed(dit.in_channels, width, dit.patch_size)
        self.transformer_blocks = nn.ModuleList(DiTBlock(dit) for _ in range(dit.num_layers))
        self.norm_out = plain_norm(width)
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, dit.patch_size**2 * out)

    def begin(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor, positions: Tensor
    ) -> tuple[Streams, Any]:
        """The noise in latents [B, C, h, w]; ``positions`` [h / P, w / P, D] of their patches."""
        hidden = self.pos_embed(sample, positions)
        given = self.waves(timestep).to(hidden.dtype), class_labels
        first: Any = self.transformer_blocks[0]
        patch = self.config.patch_size
        size = sample.shape[2] // patch, sample.shape[3] // patch
        return (hidden,), (given, first.norm1.emb(*given), size)

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden,), (given, _, _) = streams, told
        for block in self.part("transformer_blocks", first, last):
            hidden = block(hidden, *given)
        return (hidden,)

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        normal, *_ = block.norm1(streams[0], *told[0])
        return normal  # type: ignore[no-any-return]

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        _, embedding, (height, width) = told
        shift, scale = self.proj_out_1(F.silu(embedding)).chunk(2, dim=1)
        tokens = self.proj_out_2(modulate(self.norm_out(picture), shift, scale))
        drawn = unpatchify(tokens, height, width, self.config.patch_size)
        return drawn[:, : self.config.in_channels]


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(DiTTransformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(DiTTransformer2DModel, spec, model)
