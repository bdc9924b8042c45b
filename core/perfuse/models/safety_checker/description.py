"""The config and the description of the safety checker, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.clip_vision.description import ClipVisionConfig
from perfuse.models.config import TransformersConfig
from perfuse.models.names import without_positions

__all__ = ["CONCEPTS", "SPECIAL", "SafetyCheckerConfig", "current", "describe"]

#: How many concepts each table holds: those that blacken a picture, and those that lower the bar.
CONCEPTS, SPECIAL = 17, 3


@dataclass(frozen=True, kw_only=True)
class SafetyCheckerConfig(TransformersConfig):
    """The fields of Transformers' ``CLIPConfig`` that concern pictures."""

    class_name: ClassVar[str] = "StableDiffusionSafetyChecker"

    projection_dim: int = 512
    #: The fields of ``ClipVisionConfig``.
    vision_config: Any = field(default_factory=dict)
    #: The same, in files that Transformers wrote before 4.27; it wins over the other.
    vision_config_dict: Any = None

    def __post_init__(self) -> None:
        for name in ("vision_config", "vision_config_dict"):
            if not isinstance(getattr(self, name), Mapping | None):
                raise self.error(f"{name} is {getattr(self, name)!r}", "an object")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as Transformers writes it."""
        return {
            "architectures": [self.class_name],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "vision_config": self.vision.to_dict(),
        }

    def normal(self) -> dict[str, Any]:
        return {"vision": self.vision.normal()}

    @property
    def vision(self) -> ClipVisionConfig:
        """The configuration of the image encoder."""
        fields = {**(self.vision_config or {}), **(self.vision_config_dict or {})}
        return ClipVisionConfig.from_dict(fields)


def current(name: str) -> str | None:
    """A tensor's name: before version 5, Transformers saved the vision model one level deeper."""
    return without_positions(name.replace("vision_model.vision_model.", "vision_model.", 1))


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """The safety checker: how much nearer a picture is to each concept than that concept's bar."""
    vision = SafetyCheckerConfig.from_dict(config).vision
    return (
        ComponentSpec(
            name=name,
            role=Role.SAFETY_CHECKER,
            class_name=SafetyCheckerConfig.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(vision.pictures("clip_input"),),
                outputs=(
                    TensorSpec(name="special_scores", dtype="float32", shape=("batch", SPECIAL)),
                    TensorSpec(name="concept_scores", dtype="float32", shape=("batch", CONCEPTS)),
                ),
            ),
            dims={"batch": Dim(example=2)},
        ),
    )
