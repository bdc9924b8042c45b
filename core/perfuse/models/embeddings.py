"""Embeddings of timesteps, of pooled text and of pictures."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
}


def activation(name: str) -> nn.Module:
    """The activation that a config names."""
    return _ACTIVATIONS[name.lower()]()


class Timesteps(nn.Module):
    """Sinusoids of a timestep (Ho et al. 2020, after Vaswani et al. 2017): [B] -> float32 [B, C].

    Always float32: half precision cannot resolve the phase of a timestep near 1000.
    """

    def __init__(self, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.channels = channels
        self.flip_sin_to_cos = flip_sin_to_cos
        self.freq_shift = freq_shift

    def forward(self, timesteps: Tensor) -> Tensor:
        half = self.channels // 2
        exponent = -math.log(10000) * torch.arange(
            half, dtype=torch.float32, device=timesteps.device
        )
        frequencies = torch.exp(exponent / (half - self.freq_shift))
        phase = timesteps[:, None].float() * frequencies[None, :]
        halves = (phase.cos(), phase.sin()) if self.flip_sin_to_cos else (phase.sin(), phase.cos())
        embedding = torch.cat(halves, dim=-1)
        return F.pad(embedding, (0, 1)) if self.channels % 2 == 1 else embedding


class FourierFeatures(nn.Module):
    """Random Fourier features of a noise level (Song et al. 2021, score SDE): [B] -> [B, 2C]."""

    def __init__(self, size: int, *, scale: float, log: bool, flip_sin_to_cos: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size) * scale, requires_grad=False)
        self.log = log
        self.flip_sin_to_cos = flip_sin_to_cos

    def forward(self, timesteps: Tensor) -> Tensor:
        if self.log:
            timesteps = torch.log(timesteps)
        phase = timesteps[:, None] * self.weight[None, :] * 2 * math.pi
        halves = (phase.cos(), phase.sin()) if self.flip_sin_to_cos else (phase.sin(), phase.cos())
        return torch.cat(halves, dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers over the sinusoids, with LCM's optional guidance condition before them."""

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        *,
        act_fn: str = "silu",
        post_act_fn: str | None = None,
        cond_proj_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, embed_dim, bias=bias)
        self.cond_proj = (
            nn.Linear(cond_proj_dim, in_channels, bias=False) if cond_proj_dim is not None else None
        )
        self.act = activation(act_fn)
        self.linear_2 = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.post_act = activation(post_act_fn) if post_act_fn is not None else nn.Identity()

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None and self.cond_proj is not None:
            sample = sample + self.cond_proj(condition)
        output: Tensor = self.post_act(self.linear_2(self.act(self.linear_1(sample))))
        return output


class TextProjection(nn.Module):
    """Two layers over an embedding of text: [..., D] -> [..., C] (Chen et al. 2023, PixArt-α).

    Between them it is C wide, or ``inner``.
    """

    def __init__(
        self, in_channels: int, channels: int, act: nn.Module, *, inner: int | None = None
    ) -> None:
        super().__init__()
        between = channels if inner is None else inner
        self.linear_1 = nn.Linear(in_channels, between)
        self.act_1 = act
        self.linear_2 = nn.Linear(between, channels)

    def forward(self, text: Tensor) -> Tensor:
        output: Tensor = self.linear_2(self.act_1(self.linear_1(text)))
        return output


class TimeTextEmbedding(nn.Module):
    """Timestep, pooled text and, for a distilled model, the guidance scale in one [B, C].

    Args:
        channels: C.
        pooled: The width of the pooled text; ``None`` for none.
        guidance: Whether the guidance scale is embedded, too.
    """

    def __init__(self, channels: int, *, pooled: int | None, guidance: bool = False) -> None:
        super().__init__()
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(256, channels)
        if guidance:
            self.guidance_embedder = TimestepEmbedding(256, channels)
        if pooled is not None:
            self.text_embedder = TextProjection(pooled, channels, nn.SiLU())

    def forward(
        self,
        timestep: Tensor,
        dtype: torch.dtype,
        *,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """``timestep`` and ``guidance`` are float32 [B], both times a thousand."""
        told: Tensor = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        if guidance is not None:
            told = told + self.guidance_embedder(self.time_proj(guidance).to(dtype))
        return told if pooled is None else told + self.text_embedder(pooled)


class AttentionPooling(nn.Module):
    """Pools a sequence by letting its mean attend to it (OpenAI's CLIP): [B, S, C] -> [B, C]."""

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(1, channels) / channels**0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.heads = heads

    def forward(self, sequence: Tensor) -> Tensor:
        mean = sequence.mean(dim=1, keepdim=True) + self.positional_embedding.to(sequence.dtype)
        sequence = torch.cat([mean, sequence], dim=1)
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(mean), self.k_proj(sequence), self.v_proj(sequence))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)[:, 0]


class TextTimeEmbedding(nn.Module):
    """Pooled text added to the time embedding (DeepFloyd IF)."""

    def __init__(self, text_dim: int, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(text_dim)
        self.pool = AttentionPooling(heads, text_dim)
        self.proj = nn.Linear(text_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)

    def forward(self, text: Tensor) -> Tensor:
        output: Tensor = self.norm2(self.proj(self.pool(self.norm1(text))))
        return output


class TextImageTimeEmbedding(nn.Module):
    """Text and picture embeddings added to the time embedding (Kandinsky 2.1)."""

    def __init__(self, text_dim: int, image_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.text_proj = nn.Linear(text_dim, embed_dim)
        self.text_norm = nn.LayerNorm(embed_dim)
        self.image_proj = nn.Linear(image_dim, embed_dim)

    def forward(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        output: Tensor = self.image_proj(image_embeds) + self.text_norm(self.text_proj(text_embeds))
        return output


class ImageTimeEmbedding(nn.Module):
    """A picture embedding added to the time embedding (Kandinsky 2.2)."""

    def __init__(self, image_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(image_dim, embed_dim)
        self.image_norm = nn.LayerNorm(embed_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        output: Tensor = self.image_norm(self.image_proj(image_embeds))
        return output


class TextImageProjection(nn.Module):
    """Picture embeddings as ten tokens before the text (Kandinsky 2.1)."""

    tokens = 10

    def __init__(self, text_dim: int, image_dim: int, cross_attention_dim: int) -> None:
        super().__init__()
        self.image_embeds = nn.Linear(image_dim, self.tokens * cross_attention_dim)
        self.text_proj = nn.Linear(text_dim, cross_attention_dim)

    def forward(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        image = self.image_embeds(image_embeds).unflatten(-1, (self.tokens, -1))
        return torch.cat([image, self.text_proj(text_embeds)], dim=1)


class ImageProjection(nn.Module):
    """A picture embedding as thirty-two tokens (Kandinsky 2.2)."""

    tokens = 32

    def __init__(self, image_dim: int, cross_attention_dim: int) -> None:
        super().__init__()
        self.image_embeds = nn.Linear(image_dim, self.tokens * cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        output: Tensor = self.norm(self.image_embeds(image_embeds).unflatten(-1, (self.tokens, -1)))
        return output
