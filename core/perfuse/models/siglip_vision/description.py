"""The config and the description of SigLIP's image encoder, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature
from perfuse.models.clip_vision.description import VisionConfig
from perfuse.models.names import without_positions
from perfuse.models.shapes import floating

__all__ = ["SiglipVisionConfig", "current", "describe"]

_PREFIX = "vision_model."


@dataclass(frozen=True, kw_only=True)
class SiglipVisionConfig(VisionConfig):
    """The fields of Transformers' ``SiglipVisionConfig`` that determine what is computed."""

    class_name: ClassVar[str] = "SiglipVisionModel"
    model_type: ClassVar[str] = "siglip_vision_model"
    activations: ClassVar[tuple[str, ...]] = ("gelu_pytorch_tanh", "gelu")

    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vision_use_head: bool = True


def current(name: str) -> str | None:
    """A tensor's name; ``None`` for one of SigLIP's text encoder.

    Since version 5 Transformers leaves out what stands before all of them.
    """
    if name.startswith(("text_model.", "logit_")):
        return None
    return without_positions(name if name.startswith(_PREFIX) else f"{_PREFIX}{name}")


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """SigLIP's image encoder: the states before its last layer, of which image prompts are made."""
    vision = SiglipVisionConfig.from_dict(config)
    states = floating("penultimate_hidden_state", "batch", vision.patches, vision.hidden_size)
    return (
        ComponentSpec(
            name=name,
            role=Role.IMAGE_ENCODER,
            class_name=vision.class_name,
            folder=folder,
            config=config,
            signature=Signature(inputs=(vision.pictures("pixel_values"),), outputs=(states,)),
            dims={"batch": Dim(example=2)},
        ),
    )
