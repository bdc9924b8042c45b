"""The config and the components of the normaliser of image embeddings, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature
from perfuse.models.config import ModelConfig
from perfuse.models.shapes import floating

__all__ = ["ImageNormalizerConfig", "describe"]


@dataclass(frozen=True, kw_only=True)
class ImageNormalizerConfig(ModelConfig):
    """The mean and the deviation of CLIP's image embeddings, which are the model's weights."""

    class_name: ClassVar[str] = "StableUnCLIPImageNormalizer"

    #: The width of an embedding.
    embedding_dim: int = 768


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """The two directions: embeddings to normalised ones, which noise is added to, and back."""
    width = ImageNormalizerConfig.from_dict(config).embedding_dim
    embedded = floating("image_embeds", "batch", width)
    scaled = floating("scaled_embeds", "batch", width)
    directions = (
        ("scale", Role.EMBEDDING_SCALE, Signature(inputs=(embedded,), outputs=(scaled,))),
        ("unscale", Role.EMBEDDING_UNSCALE, Signature(inputs=(scaled,), outputs=(embedded,))),
    )
    return tuple(
        ComponentSpec(
            name=f"{name}_{direction}",
            role=role,
            class_name=ImageNormalizerConfig.class_name,
            folder=folder,
            config=config,
            signature=signature,
            dims={"batch": Dim(example=2)},
        )
        for direction, role, signature in directions
    )
