"""The network of the safety checker; ``perfuse.tasks.safety`` decides by its scores."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec
from perfuse.models.building import load_native, native
from perfuse.models.clip_vision.transformer import VisionTransformer
from perfuse.models.model import Model
from perfuse.models.safety_checker.description import (
    CONCEPTS,
    SPECIAL,
    SafetyCheckerConfig,
    current,
)
from perfuse.sources.weights import Weights

__all__ = ["StableDiffusionSafetyChecker", "build", "wrap"]


class StableDiffusionSafetyChecker(Model):
    """``clip_input -> (special_scores, concept_scores)``: cosines minus each concept's threshold.

    Cosines are float32 in every precision: a decision falls where two numbers nearly cancel.
    """

    config_class = SafetyCheckerConfig
    config: SafetyCheckerConfig
    weights_name: ClassVar[str] = "model.safetensors"

    def build(self) -> None:
        config = self.config
        self.vision_model = VisionTransformer(config.vision)
        width = config.projection_dim
        self.visual_projection = nn.Linear(config.vision.hidden_size, width, bias=False)
        self.concept_embeds = nn.Parameter(torch.ones(CONCEPTS, width))
        self.special_care_embeds = nn.Parameter(torch.ones(SPECIAL, width))
        self.concept_embeds_weights = nn.Parameter(torch.ones(CONCEPTS))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(SPECIAL))

    def forward(self, clip_input: Tensor) -> tuple[Tensor, Tensor]:
        pooled, _ = self.vision_model(clip_input)
        embeds = _unit(self.visual_projection(pooled))
        special = embeds @ _unit(self.special_care_embeds).t()
        concepts = embeds @ _unit(self.concept_embeds).t()
        return (
            special - self.special_care_embeds_weights.float(),
            concepts - self.concept_embeds_weights.float(),
        )

    @staticmethod
    def rename(name: str) -> str | None:
        return current(name)


def _unit(rows: Tensor) -> Tensor:
    """Each row divided by its length, float32."""
    rows = rows.float()
    length = (rows * rows).sum(dim=-1, keepdim=True).sqrt()
    return rows / length.clamp_min(1e-12)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(StableDiffusionSafetyChecker, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a safety checker of perfuse or Diffusers."""
    return native(StableDiffusionSafetyChecker, spec, model)
