"""Chroma's transformer: FLUX.1's blocks, modulated by one small network (Rock 2025).

https://huggingface.co/lodestones/Chroma; blocks with two streams after Esser et al. 2024,
arXiv:2403.03206, parallel ones after Dehghani et al. 2023, arXiv:2302.05442.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import RMSNorm, modulate, plain_norm
from perfuse.models.attention import FeedForward
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import converted, load_native
from perfuse.models.chroma_transformer.description import ChromaConfig
from perfuse.models.embeddings import TextProjection, Timesteps
from perfuse.models.flux_attention import FluxAttention, Look
from perfuse.models.half_precision import in_range
from perfuse.models.joint_attention import SelfAttention
from perfuse.models.rotary import rotate_pairs
from perfuse.sources.weights import Weights

__all__ = ["ChromaTransformer2DModel", "build", "wrap"]

#: What PyTorch's norms add to a mean square.
_EPS = torch.finfo(torch.float32).eps


class Approximator(nn.Module):
    """Sinusoids of the timestep and of a modulation's number to that modulation [B, M, C]."""

    def __init__(self, chroma: ChromaConfig) -> None:
        super().__init__()
        hidden = chroma.approximator_hidden_dim
        count = range(chroma.approximator_layers)
        self.in_proj = nn.Linear(chroma.approximator_num_channels, hidden)
        self.layers = nn.ModuleList(TextProjection(hidden, hidden, nn.SiLU()) for _ in count)
        self.norms = nn.ModuleList(RMSNorm(hidden, _EPS) for _ in count)
        self.out_proj = nn.Linear(hidden, chroma.width)

    def forward(self, waves: Tensor) -> Tensor:
        hidden = self.in_proj(waves)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = hidden + layer(norm(hidden))
        output: Tensor = self.out_proj(hidden)
        return output


class ChromaTransformerBlock(nn.Module):
    """Joint attention of text and picture, then a feed-forward network for each."""

    streams: ClassVar[int] = 2

    def __init__(self, chroma: ChromaConfig) -> None:
        super().__init__()
        width = chroma.width
        self.norm1, self.norm1_context = plain_norm(width), plain_norm(width)
        self.attn = FluxAttention(
            width,
            heads=chroma.num_attention_heads,
            head_dim=chroma.attention_head_dim,
            rotate=rotate_pairs,
        )
        self.norm2, self.norm2_context = plain_norm(width), plain_norm(width)
        self.ff = FeedForward(width, activation="gelu-approximate")
        self.ff_context = FeedForward(width, activation="gelu-approximate")

    def forward(
        self,
        hidden: Tensor,
        text: Tensor,
        told: Tensor,
        text_told: Tensor,
        table: Tensor,
        bias: Tensor,
        look: Look | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``told`` and ``text_told`` are six modulations each, [B, 6, C]."""
        shift, scale, gate, shift_2, scale_2, gate_2 = told.unbind(1)
        own = text_told.unbind(1)
        normal = modulate(self.norm1(hidden), shift, scale)
        text_normal = modulate(self.norm1_context(text), own[0], own[1])
        attended, text_attended, *seen = self.attn(normal, text_normal, table, bias, look)
        hidden = hidden + gate[:, None] * attended
        text = text + own[2][:, None] * text_attended
        hidden = hidden + gate_2[:, None] * self.ff(modulate(self.norm2(hidden), shift_2, scale_2))
        text_fed = self.ff_context(modulate(self.norm2_context(text), own[3], own[4]))
        return sum(seen, hidden), in_range(text + own[5][:, None] * text_fed)


class ChromaSingleTransformerBlock(nn.Module):
    """Attention and the feed-forward network side by side, over text and picture as one sequence."""

    streams: ClassVar[int] = 1

    def __init__(self, chroma: ChromaConfig) -> None:
        super().__init__()
        width = chroma.width
        self.norm = plain_norm(width)
        self.proj_mlp = nn.Linear(width, 4 * width)
        self.proj_out = nn.Linear(5 * width, width)
        self.attn = SelfAttention(
            width,
            heads=chroma.num_attention_heads,
            head_dim=chroma.attention_head_dim,
            rotate=rotate_pairs,
            out=False,
        )

    def forward(self, hidden: Tensor, told: Tensor, table: Tensor, bias: Tensor) -> Tensor:
        """``told`` are three modulations [B, 3, C]."""
        shift, scale, gate = told.unbind(1)
        normal = modulate(self.norm(hidden), shift, scale)
        inner = F.gelu(self.proj_mlp(normal), approximate="tanh")
        joined = torch.cat([self.attn(normal, table, bias), inner], dim=2)
        return in_range(hidden + gate[:, None] * self.proj_out(joined))


class ChromaTransformer2DModel(BlockModel):
    """Chroma's denoiser of packed latents."""

    config_class = ChromaConfig
    config: ChromaConfig
    rows = ("transformer_blocks", "single_transformer_blocks")

    def build(self) -> None:
        chroma, width = self.config, self.config.width
        self.waves = Timesteps(chroma.waves, flip_sin_to_cos=True, freq_shift=0)
        self.distilled_guidance_layer = Approximator(chroma)
        self.context_embedder = nn.Linear(chroma.joint_attention_dim, width)
        self.x_embedder = nn.Linear(chroma.in_channels, width)
        self.transformer_blocks = nn.ModuleList(
            ChromaTransformerBlock(chroma) for _ in range(chroma.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            ChromaSingleTransformerBlock(chroma) for _ in range(chroma.num_single_layers)
        )
        self.norm_out = plain_norm(width)
        out = chroma.out_channels if chroma.out_channels is not None else chroma.in_channels
        self.proj_out = nn.Linear(width, out)

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        text_rotary: Tensor,
        image_rotary: Tensor,
        modulation_waves: Tensor,
        *,
        looks: tuple[Look, ...] = (),
    ) -> tuple[Streams, Any]:
        """The velocity at tokens [B, N, C]; ``timestep`` is 0 to 1000, tables [2, N, D / 2]."""
        told = self._modulations(timestep, modulation_waves, sample.dtype)
        hidden, text = self.x_embedder(sample), self.context_embedder(encoder_hidden_states)
        table = torch.cat([text_rotary, image_rotary], dim=1)
        bias = _bias(encoder_attention_mask, sample)
        return (hidden, text), (told, table, bias, looks)

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden, text), (told, table, bias, looks) = streams, told
        # Those of single blocks come first, then the picture's of the others, then the text's.
        pictures = 3 * len(self.single_transformer_blocks)
        texts = pictures + 6 * len(self.transformer_blocks)
        for i, block in self.numbered("transformer_blocks", first, last):
            own, other = pictures + 6 * i, texts + 6 * i
            modulations = told[:, own : own + 6], told[:, other : other + 6]
            look = looks[i] if looks else None
            hidden, text = block(hidden, text, *modulations, table, bias, look)
        singles = self.numbered("single_transformer_blocks", first, last)
        if not singles:
            return hidden, text
        joined = torch.cat([text, hidden], dim=1)
        for i, block in singles:
            joined = block(joined, told[:, 3 * i : 3 * i + 3], table, bias)
        length = text.shape[1]
        return joined[:, length:], joined[:, :length]

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.transformer_blocks[0]
        start = 3 * len(self.single_transformer_blocks)
        shift, scale = told[0][:, start], told[0][:, start + 1]
        return modulate(block.norm1(streams[0]), shift, scale)

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        shift, scale = told[0][:, -2], told[0][:, -1]
        output: Tensor = self.proj_out(modulate(self.norm_out(picture), shift, scale))
        return output

    def _modulations(self, timestep: Tensor, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """All modulations of a timestep, [B, M, C]; it is told a guidance scale of 0."""
        waves = self.waves(timestep)
        both = torch.cat([waves, self.waves(torch.zeros_like(timestep))], dim=1)
        each = both[:, None].expand(-1, numbers.shape[0], -1)
        places = numbers[None].expand(each.shape[0], -1, -1)
        output: Tensor = self.distilled_guidance_layer(torch.cat([each, places], dim=2).to(dtype))
        return output


def _bias(mask: Tensor, sample: Tensor) -> Tensor:
    """What is added to the logits of each two tokens, [B, 1, N, N]: 1 if both are seen, else 0.

    The published pipeline adds its mask of ones and zeros, which hides nothing and weighs what is
    hidden by 1 / e; so it is drawn everywhere.
    """
    seen = torch.cat([mask.to(sample.dtype), torch.ones_like(sample[..., 0])], dim=1)
    return seen[:, None, None] * seen[:, None, :, None]


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(ChromaTransformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a model that the user gives: its weights in perfuse's own."""
    return converted(ChromaTransformer2DModel, spec, model)
