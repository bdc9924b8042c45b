"""CLIP's image encoder."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec
from perfuse.models.building import load_native, native
from perfuse.models.clip_vision.description import ClipVisionConfig, current
from perfuse.models.clip_vision.transformer import VisionTransformer
from perfuse.models.model import Model
from perfuse.sources.weights import Weights

__all__ = ["CLIPVisionModelWithProjection", "build", "load", "wrap"]


class CLIPVisionModelWithProjection(Model):
    """``pixel_values -> (image_embeds, penultimate_hidden_state)``."""

    config_class = ClipVisionConfig
    config: ClipVisionConfig
    weights_name: ClassVar[str] = "model.safetensors"

    def build(self) -> None:
        config = self.config
        self.vision_model = VisionTransformer(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        pooled, states = self.vision_model(pixel_values)
        return self.visual_projection(pooled), states

    @staticmethod
    def rename(name: str) -> str | None:
        return current(name)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(CLIPVisionModelWithProjection, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of an image encoder of perfuse or Transformers."""
    return native(CLIPVisionModelWithProjection, spec, model)


def load(folder: Path) -> nn.Module:
    """The image encoder in a folder of its own, as adapters come with, also that of CLIP as a whole.

    Raises:
        CheckpointError: the folder or its config cannot be read.
        WeightsError: tensors are missing, unexpected, misshapen or damaged.
    """
    return CLIPVisionModelWithProjection.from_pretrained(folder)
