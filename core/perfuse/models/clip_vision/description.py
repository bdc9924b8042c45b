"""The config and the description of CLIP's image encoder, without torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import TransformersConfig
from perfuse.models.names import without_positions
from perfuse.models.shapes import floating

__all__ = ["ClipVisionConfig", "VisionConfig", "current", "describe"]


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformersConfig):
    """What the configs of vision transformers share that cut a picture into patches."""

    model_type: ClassVar[str] = ""
    activations: ClassVar[tuple[str, ...]] = ()

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int
    hidden_act: str
    layer_norm_eps: float

    def __post_init__(self) -> None:
        self.check_choice("hidden_act", self.activations)
        if not 0 < self.patch_size <= self.image_size:
            raise self.error(f"patch_size is {self.patch_size}", f"1 to {self.image_size}")
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise self.error(
                f"num_attention_heads is {self.num_attention_heads}",
                f"a number that divides hidden_size, {self.hidden_size}",
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed ``config.json``, also of a model of texts and pictures, which has it inside.

        Raises:
            CheckpointError: the model cannot take a value.
        """
        return super().from_dict(config.get("vision_config", config))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as Transformers writes it."""
        fields = dataclasses.asdict(self)
        return {"architectures": [self.class_name], "model_type": self.model_type, **fields}

    @property
    def patches(self) -> int:
        """How many patches a picture has."""
        return (self.image_size // self.patch_size) ** 2

    def pictures(self, name: str) -> TensorSpec:
        """An input of pictures, as an image processor makes them."""
        return floating(name, "batch", self.num_channels, self.image_size, self.image_size)


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(VisionConfig):
    """The fields of Transformers' ``CLIPVisionConfig`` that determine what is computed."""

    class_name: ClassVar[str] = "CLIPVisionModelWithProjection"
    model_type: ClassVar[str] = "clip_vision_model"
    activations: ClassVar[tuple[str, ...]] = ("quick_gelu", "gelu")

    projection_dim: int = 512
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def tokens(self) -> int:
        """The length of a picture's sequence: its patches and the class token."""
        return self.patches + 1


def current(name: str) -> str | None:
    """A tensor's name; ``None`` for one of a text encoder, which files of CLIP as a whole have."""
    others = ("text_model.", "text_projection.", "logit_")
    return None if name.startswith(others) else without_positions(name)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """CLIP's image encoder: the embedding in the space that pictures and texts share, and states.

    An image prompt is made of one or the other, so that a captured graph returns both.
    """
    vision = ClipVisionConfig.from_dict(config)
    return (
        ComponentSpec(
            name=name,
            role=Role.IMAGE_ENCODER,
            class_name=vision.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(vision.pictures("pixel_values"),),
                outputs=(
                    floating("image_embeds", "batch", vision.projection_dim),
                    floating(
                        "penultimate_hidden_state", "batch", vision.tokens, vision.hidden_size
                    ),
                ),
            ),
            dims={"batch": Dim(example=2)},
        ),
    )
