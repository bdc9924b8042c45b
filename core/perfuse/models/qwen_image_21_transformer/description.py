"""The config, the latents and the positions of ``QwenImage21Transformer2DModel``, without torch.

A position has three axes. A word has its number on all of them; the picture comes after the words on the
first, and has its rows and columns on the others, both from its middle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.component import Component
from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.packed_latents import PackedLatents, packed
from perfuse.models.positions import grid, rotary_axes, rotary_table
from perfuse.models.shapes import TIMESTEP, floating

__all__ = [
    "QwenImage21Config",
    "QwenImage21Latents",
    "describe",
    "first_blocks",
    "host_inputs",
    "latents",
    "picture_place",
]


@dataclass(frozen=True, kw_only=True)
class QwenImage21Config(ModelConfig):
    """A transformer of one stream, in which words see those before them, and the picture all."""

    class_name: ClassVar[str] = "QwenImage21Transformer2DModel"
    strict: ClassVar[bool] = True

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = 64
    num_layers: int = 32
    attention_head_dim: int = 128
    num_attention_heads: int = 32
    context_in_dim: int = 4096
    mlp_ratio: int = 3
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    eps: float = 1e-6
    causal_condition: bool = True
    #: Latents of a picture's side. Of perfuse's own: in Diffusers it is always 64.
    sample_size: int = 64

    def __post_init__(self) -> None:
        self.check_choice("patch_size", (1,))
        self.check_choice("out_channels", (None, self.in_channels))
        if sum(self.axes_dims_rope) != self.attention_head_dim or len(self.axes_dims_rope) != 3:
            raise self.error(
                f"axes_dims_rope is {self.axes_dims_rope}",
                f"three numbers that add up to attention_head_dim, {self.attention_head_dim}",
            )

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_attention(sizes["image_sequence"], self.width)


@dataclass(frozen=True, kw_only=True)
class QwenImage21Latents(PackedLatents):
    """Qwen-Image 2.1's latents: each of the autoencoder's is a token, and sides are even."""

    kind: ClassVar[str] = "QwenImage21Transformer2DModel"
    patch: ClassVar[int] = 1


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents as tokens and text states in, a velocity out.

    ``text_bias`` is added to the logits of words, and hides later words and what fills texts up;
    ``picture_rotary`` is where the picture is on the first axis: ``picture_place`` says it.
    """
    model = QwenImage21Config.from_dict(config)
    first, *others = (width // 2 for width in model.axes_dims_rope)
    whole, rest = model.attention_head_dim // 2, sum(others)

    def table(label: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=label, dtype="float32", shape=shape)

    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=model.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    floating("sample", "batch", "image_sequence", model.in_channels),
                    TIMESTEP,
                    floating("encoder_hidden_states", "batch", "sequence", model.context_in_dim),
                    floating("text_bias", "batch", "sequence", "sequence"),
                    table("picture_rotary", "batch", 2, first),
                    table("text_rotary", 2, "sequence", whole),
                    table("grid_rotary", 2, "image_sequence", rest),
                ),
                outputs=(floating("out_sample", "batch", "image_sequence", model.in_channels),),
            ),
            dims={
                "batch": Dim(example=2),
                "image_sequence": Dim(example=12, smallest=2),
                "sequence": Dim(example=7, smallest=2),
            },
            sample_size=(model.sample_size, model.sample_size),
            guidance="branches",
            reads_layers=(-1,),
            reads_normed=False,
        ),
    )


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> LatentSpec | None:
    """The autoencoder's latents, packed."""
    return packed(QwenImage21Latents, inner)


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    model = QwenImage21Config.from_dict(component.spec.config)
    return cut(component, first, last, of=model.num_layers, width=model.width, between=0)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Rotary tables of the words, and of the picture's rows and columns."""
    axes = QwenImage21Config.from_dict(spec.config).axes_dims_rope
    height, width = sizes["latent_height"], sizes["latent_width"]
    middle = np.array([height - height // 2, width - width // 2])
    words = np.repeat(np.arange(sizes["sequence"])[:, None], len(axes), axis=1)
    return {
        "text_rotary": rotary_axes(words, axes),
        "grid_rotary": rotary_axes(grid(height, width) - middle, axes[1:]),
    }


def picture_place(spec: ComponentSpec, texts: int, words: int) -> Array:
    """The rotary table of a picture after so many words on the first axis, [texts, 2, D₁ / 2]."""
    axes = QwenImage21Config.from_dict(spec.config).axes_dims_rope
    return rotary_table(np.full(texts, words), axes[0]).transpose(1, 0, 2)
