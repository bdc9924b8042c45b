"""Qwen-Image's transformer: text and picture in two streams that attend to both (arXiv:2508.02324)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import AdaLayerNormContinuous, RMSNorm, modulate, plain_norm
from perfuse.models.attention import FeedForward
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.embeddings import TimeTextEmbedding
from perfuse.models.half_precision import in_range
from perfuse.models.joint_attention import JointAttention
from perfuse.models.qwen_image_transformer.description import QwenImageConfig
from perfuse.models.rotary import rotate_pairs
from perfuse.sources.weights import Weights

__all__ = ["QwenImageTransformer2DModel", "build", "wrap"]


class Told(NamedTuple):
    """What blocks are told of the noise."""

    #: The timestep's embedding, [B, C].
    level: Tensor
    #: That of timestep 0, [B, C], and for which of the picture's tokens it is, [N]; or ``None``.
    none: Tensor | None
    without_noise: Tensor | None


class QwenImageTransformerBlock(nn.Module):
    """Joint attention of text and picture, then a feed-forward network for each."""

    def __init__(self, config: QwenImageConfig) -> None:
        super().__init__()
        width = config.width
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.img_norm1, self.img_norm2 = plain_norm(width), plain_norm(width)
        self.attn = JointAttention(
            width,
            heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            rotate=rotate_pairs,
        )
        self.img_mlp = FeedForward(width, activation="gelu-approximate")
        self.txt_mod = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.txt_norm1, self.txt_norm2 = plain_norm(width), plain_norm(width)
        self.txt_mlp = FeedForward(width, activation="gelu-approximate")

    def modulations(self, told: Told) -> tuple[Tensor, ...]:
        """What scales and shifts the picture's tokens: each [B, 1, C], or [B, N, C]."""
        found = self.img_mod(told.level)[:, None]
        if told.without_noise is not None and told.none is not None:
            clean = self.img_mod(told.none)[:, None]
            found = torch.where(told.without_noise[None, :, None] != 0, clean, found)
        parts: tuple[Tensor, ...] = found.chunk(6, dim=-1)
        return parts

    def forward(
        self, hidden: Tensor, text: Tensor, told: Told, table: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        shift, scale, gate, *feed = self.modulations(told)
        text_shift, text_scale, text_gate, *text_feed = self.txt_mod(told.level).chunk(6, dim=-1)
        normal = self.img_norm1(hidden) * (1 + scale) + shift
        text_normal = modulate(self.txt_norm1(text), text_shift, text_scale)
        attended, text_attended = self.attn(normal, text_normal, table, bias)
        hidden = hidden + gate * attended
        text = text + text_gate[:, None] * text_attended
        shift, scale, gate = feed
        hidden = hidden + gate * self.img_mlp(self.img_norm2(hidden) * (1 + scale) + shift)
        shift, scale, gate = text_feed
        text = text + gate[:, None] * self.txt_mlp(modulate(self.txt_norm2(text), shift, scale))
        return in_range(hidden), in_range(text)


class QwenImageTransformer2DModel(BlockModel):
    """Qwen-Image's denoiser of packed latents."""

    config_class = QwenImageConfig
    config: QwenImageConfig

    def build(self) -> None:
        config, width = self.config, self.config.width
        self.time_text_embed = TimeTextEmbedding(width, pooled=None)
        self.txt_norm = RMSNorm(config.joint_attention_dim, 1e-6)
        self.img_in = nn.Linear(config.in_channels, width)
        self.txt_in = nn.Linear(config.joint_attention_dim, width)
        self.transformer_blocks = nn.ModuleList(
            QwenImageTransformerBlock(config) for _ in range(config.num_layers)
        )
        self.norm_out = AdaLayerNormContinuous(width)
        self.proj_out = nn.Linear(width, config.token_channels)

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_bias: Tensor,
        text_rotary: Tensor,
        image_rotary: Tensor,
        without_noise: Tensor | None = None,
    ) -> tuple[Streams, Any]:
        """The velocity at tokens [B, N, C]; ``timestep`` is 0 to 1000, tables [2, N, D / 2].

        ``without_noise`` [N] is 1 for tokens of pictures to edit.
        """
        hidden = self.img_in(sample)
        text = self.txt_in(self.txt_norm(encoder_hidden_states))
        none = None
        if without_noise is not None:
            none = self.time_text_embed(timestep * 0, hidden.dtype)
        level = self.time_text_embed(timestep, hidden.dtype)
        told = Told(level=level, none=none, without_noise=without_noise)
        table = torch.cat([text_rotary, image_rotary], dim=1)
        bias = torch.cat([text_bias, torch.zeros_like(sample[..., 0])], dim=1)[:, None, None]
        return (hidden, text), (told, table, bias)

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        hidden, text = streams
        for block in self.part("transformer_blocks", first, last):
            hidden, text = block(hidden, text, *told)
        return hidden, text

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        shift, scale, *_ = block.modulations(told[0])
        modulated: Tensor = block.img_norm1(streams[0]) * (1 + scale) + shift
        return modulated

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        output: Tensor = self.proj_out(self.norm_out(picture, told[0].level))
        return output


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(QwenImageTransformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(QwenImageTransformer2DModel, spec, model)
