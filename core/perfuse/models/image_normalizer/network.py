"""The normaliser of image embeddings in Stable unCLIP."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.models.building import load_native, native
from perfuse.models.image_normalizer.description import ImageNormalizerConfig
from perfuse.models.model import Model
from perfuse.sources.weights import Weights

__all__ = ["StableUnCLIPImageNormalizer", "build", "wrap"]


class StableUnCLIPImageNormalizer(Model):
    """Embeddings [B, D] with their mean taken out, divided by their deviation; and back."""

    config_class: ClassVar[type[ImageNormalizerConfig]] = ImageNormalizerConfig
    config: ImageNormalizerConfig

    def build(self) -> None:
        width = self.config.embedding_dim
        self.mean = nn.Parameter(torch.zeros(1, width))
        self.std = nn.Parameter(torch.ones(1, width))

    def scale(self, embeds: Tensor) -> Tensor:
        """Normalise."""
        return (embeds - self.mean) / self.std

    def unscale(self, embeds: Tensor) -> Tensor:
        """Undo ``scale``."""
        return embeds * self.std + self.mean


class Scale(nn.Module):
    """``image_embeds -> (scaled_embeds,)``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_embeds: Tensor) -> tuple[Tensor]:
        return (self.model.scale(image_embeds),)


class Unscale(nn.Module):
    """``scaled_embeds -> (image_embeds,)``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, scaled_embeds: Tensor) -> tuple[Tensor]:
        return (self.model.unscale(scaled_embeds),)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of one direction of a checkpoint's normaliser."""
    return wrap(spec, load_native(StableUnCLIPImageNormalizer, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one direction of a normaliser of perfuse or Diffusers."""
    whole = native(StableUnCLIPImageNormalizer, spec, model)
    return Scale(whole) if spec.role == Role.EMBEDDING_SCALE else Unscale(whole)
