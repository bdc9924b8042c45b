"""DPT's vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), plain or after convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.dpt.bit import BitBackbone
from perfuse.models.dpt.description import DptConfig

__all__ = ["Dpt"]


class PatchEmbeddings(nn.Module):
    """Patches of a picture, [B, D, h, w]."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=patch, stride=patch
        )

    def forward(self, pictures: Tensor) -> Tensor:
        patches: Tensor = self.projection(pictures)
        return patches


class Embeddings(nn.Module):
    """A class token and the patches with their positions, [B, 1 + N, D], and a hybrid's features."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.patch_embeddings = self.backbone = self.projection = None
        if config.is_hybrid:
            self.backbone = BitBackbone(config.bit)
            self.projection = nn.Conv2d(config.bit.hidden_sizes[2], width, kernel_size=1)
        else:
            self.patch_embeddings = PatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.grid**2 + 1, width))

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        features: list[Tensor] = []
        if self.patch_embeddings is not None:
            patches = self.patch_embeddings(pictures)
        else:
            assert self.backbone is not None and self.projection is not None
            features = self.backbone(pictures)
            patches = self.projection(features[-1])
        first = self.cls_token.expand(pictures.shape[0], -1, -1)
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        return tokens + self.position_embeddings, features[:2]


class SelfAttention(nn.Module):
    """Multi-head self-attention over [B, N, D], before its last layer."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.qkv_bias
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (
            project(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Dense(nn.Module):
    """A linear layer under the name that checkpoints have for it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.dense = nn.Linear(before, after)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.dense(hidden)
        return output


class Attention(nn.Module):
    """Self-attention and its last layer."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.output = Dense(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.output(self.attention(hidden))
        return output


class Layer(nn.Module):
    """Attention and a two-layer network, each normalised first and added to its input."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention = Attention(config)
        self.intermediate = Dense(width, config.intermediate_size)
        self.output = Dense(config.intermediate_size, width)
        self.layernorm_before = nn.LayerNorm(width, eps=eps)
        self.layernorm_after = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.layernorm_before(hidden))
        inner = F.gelu(self.intermediate(self.layernorm_after(hidden)))
        output: Tensor = hidden + self.output(inner)
        return output


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Dpt(nn.Module):
    """Pictures to the states that depth is made of: a hybrid's features, and of some layers.

    Features are [B, C, h, w], states [B, 1 + N, D]. The norm after the last layer is not among
    them; checkpoints hold it.
    """

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        kept = config.backbone_out_indices[2:] if config.is_hybrid else config.backbone_out_indices
        self.kept = tuple(sorted(set(kept)))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        states: list[Tensor]
        hidden, states = self.embeddings(pictures)
        for i, layer in enumerate(self.encoder.layer):
            hidden = layer(hidden)
            if i in self.kept:
                states.append(hidden)
        return states
