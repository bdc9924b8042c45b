"""SigLIP's image encoder (Zhai et al. 2023, arXiv:2303.15343).

Its last layer and its head, which pool a picture to one embedding, are held and not computed: no
pipeline reads that, and a pipeline with the encoder is saved with all of it.
"""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec
from perfuse.models.building import load_native, native
from perfuse.models.clip_vision.transformer import VisionEncoder, VisionMLP
from perfuse.models.model import Model
from perfuse.models.siglip_vision.description import SiglipVisionConfig, current
from perfuse.sources.weights import Weights

__all__ = ["SiglipVisionModel", "build", "load", "wrap"]


class SiglipEmbeddings(nn.Module):
    """Patches of a picture with their positions: [B, patches, D]."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, kernel_size=patch, stride=patch
        )
        self.position_embedding = nn.Embedding(config.patches, width)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)
        placed: Tensor = patches + self.position_embedding.weight
        return placed


class SiglipHead(nn.Module):
    """The weights of the pooling head."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.probe = nn.Parameter(torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, config.num_attention_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)


class SiglipTransformer(nn.Module):
    """Pictures [B, C, H, W] to the states [B, patches, D] before the last layer."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.vision_use_head:
            self.head = SiglipHead(config)

    def forward(self, pictures: Tensor) -> Tensor:
        hidden: Tensor = self.embeddings(pictures)
        for layer in self.encoder.layers[:-1]:
            hidden = layer(hidden)
        return hidden


class SiglipVisionModel(Model):
    """``pixel_values -> (penultimate_hidden_state,)``."""

    config_class = SiglipVisionConfig
    config: SiglipVisionConfig
    weights_name: ClassVar[str] = "model.safetensors"

    def build(self) -> None:
        self.vision_model = SiglipTransformer(self.config)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.vision_model(pixel_values),)

    @staticmethod
    def rename(name: str) -> str | None:
        return current(name)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(SiglipVisionModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of an image encoder of perfuse or Transformers."""
    return native(SiglipVisionModel, spec, model)


def load(folder: Path) -> nn.Module:
    """The image encoder in a folder of its own, also that of SigLIP as a whole.

    Raises:
        CheckpointError: the folder or its config cannot be read.
        WeightsError: tensors are missing, unexpected, misshapen or damaged.
    """
    return SiglipVisionModel.from_pretrained(folder)
