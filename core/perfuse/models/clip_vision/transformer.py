"""CLIP's vision transformer (Radford et al. 2021, arXiv:2103.00020), and the layers that SigLIP's has."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.clip_vision.description import ClipVisionConfig, VisionConfig

__all__ = ["VisionEncoder", "VisionMLP", "VisionTransformer"]


class QuickGELU(nn.Module):
    """The approximation x σ(1.702 x) of the GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * torch.sigmoid(1.702 * hidden)


_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
}


class VisionEmbeddings(nn.Module):
    """Patches of a picture and the class token, with their positions: [B, 1 + patches, D]."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, kernel_size=patch, stride=patch, bias=False
        )
        self.position_embedding = nn.Embedding(config.tokens, width)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Multi-head self-attention over [B, N, D]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (
            project(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return output


class VisionMLP(nn.Module):
    """The two-layer network of a transformer layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.hidden_act]()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.fc2(self.activation(self.fc1(hidden)))
        return output


class VisionLayer(nn.Module):
    """Self-attention and a two-layer network, each normalised first and added to its input."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        output: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return output


class VisionEncoder(nn.Module):
    """The layers of the transformer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))


class VisionTransformer(nn.Module):
    """Pictures [B, C, H, W] to the pooled state [B, D] and the states before the last layer."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(width, eps=eps)  # spelled so in every checkpoint
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(width, eps=eps)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        before = hidden = self.pre_layrnorm(self.embeddings(pictures))
        for layer in self.encoder.layers:
            before, hidden = hidden, layer(hidden)
        return self.post_layernorm(hidden[:, 0]), before
