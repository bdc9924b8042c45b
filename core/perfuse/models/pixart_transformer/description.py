"""The config and the description of ``PixArtTransformer2DModel``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.architecture import Attended, Attentions
from perfuse.contract.component import Component
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.positions import sincos_2d
from perfuse.models.shapes import TIMESTEP, floating

__all__ = ["PixArtConfig", "attentions", "describe", "first_blocks", "host_inputs"]


@dataclass(frozen=True, kw_only=True)
class PixArtConfig(ModelConfig):
    """A transformer of self-attention, cross-attention to the text and a feed-forward network."""

    class_name: ClassVar[str] = "PixArtTransformer2DModel"
    strict: ClassVar[bool] = True

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = 8
    num_layers: int = 28
    dropout: float = 0.0
    norm_num_groups: int = 32
    cross_attention_dim: int | None = 1152
    attention_bias: bool = True
    sample_size: int = 128
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    num_embeds_ada_norm: int | None = 1000
    upcast_attention: bool = False
    norm_type: str = "ada_norm_single"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    interpolation_scale: float | None = None
    use_additional_conditions: bool | None = None
    caption_channels: int | None = None
    attention_type: str | None = "default"

    def __post_init__(self) -> None:
        self.check_choice("activation_fn", ("gelu-approximate",))
        self.check_choice("norm_type", ("ada_norm_single",))
        self.check_choice("norm_elementwise_affine", (False,))
        self.check_choice("attention_type", ("default", None))

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    def held(self, sizes: Mapping[str, int]) -> int:
        height, width = sizes["latent_height"], sizes["latent_width"]
        return held_by_attention(height * width // self.patch_size**2, self.width)

    @property
    def text_width(self) -> int:
        """Channels of the text's states, before they are projected."""
        states = self.caption_channels
        return states if states is not None else self.context_width

    @property
    def context_width(self) -> int:
        """Channels of what cross-attention reads."""
        return self.width if self.cross_attention_dim is None else self.cross_attention_dim

    @property
    def told_size(self) -> bool:
        """Whether it is told the picture's size and shape (micro-conditions)."""
        if self.use_additional_conditions is None:
            return self.sample_size == 128
        return self.use_additional_conditions

    @property
    def stretch(self) -> float:
        """How much larger pictures are than those of the first training."""
        if self.interpolation_scale is not None:
            return self.interpolation_scale
        return max(self.sample_size // 64, 1)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents and text states in, noise out; a learned variance, which is not used, is left out."""
    pixart = PixArtConfig.from_dict(config)
    patch = pixart.patch_size
    latents = (pixart.in_channels, "latent_height", "latent_width")
    places = (f"latent_height/{patch}", f"latent_width/{patch}", pixart.width)
    inputs = [
        floating("sample", "batch", *latents),
        TIMESTEP,
        floating("encoder_hidden_states", "batch", "sequence", pixart.text_width),
        TensorSpec(name="encoder_attention_mask", dtype="int64", shape=("batch", "sequence")),
        TensorSpec(name="positions", dtype="float32", shape=places),
    ]
    if pixart.told_size:
        inputs.append(TensorSpec(name="resolution", dtype="float32", shape=("batch", 2)))
        inputs.append(TensorSpec(name="aspect_ratio", dtype="float32", shape=("batch", 1)))
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=pixart.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=tuple(inputs), outputs=(floating("out_sample", "batch", *latents),)
            ),
            dims={
                "batch": Dim(example=2),
                "latent_height": Dim(multiple=patch, example=6, smallest=2),
                "latent_width": Dim(multiple=patch, example=4, smallest=2),
                "sequence": Dim(example=7, smallest=2),
            },
            sample_size=(pixart.sample_size, pixart.sample_size),
            guidance="branches",
        ),
    )


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    pixart = PixArtConfig.from_dict(component.spec.config)
    return cut(
        component, first, last, of=pixart.num_layers, width=pixart.width, patch=pixart.patch_size
    )


def attentions(spec: ComponentSpec) -> Attentions:
    """In each block one among the picture's tokens, then one to the text."""
    pixart = PixArtConfig.from_dict(spec.config)
    each = tuple(
        Attended(module=f"transformer_blocks.{i}.{name}", kind=kind)
        for i in range(pixart.num_layers)
        for name, kind in (("attn1", "spatial"), ("attn2", "cross"))
    )
    return Attentions(each=each, width=pixart.width, patch=pixart.patch_size)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Sinusoids of the tokens' places; the picture's size in pixels and its shape."""
    pixart = PixArtConfig.from_dict(spec.config)
    patch = pixart.patch_size
    size = sizes["latent_height"] // patch, sizes["latent_width"] // patch
    base, stretch = pixart.sample_size // patch, pixart.stretch
    table = sincos_2d(pixart.width, size, base=base, interpolation_scale=stretch)
    given: dict[str, Any] = {"positions": table.reshape(*size, pixart.width)}
    if pixart.told_size:
        height, width = sizes["height"], sizes["width"]
        told = {"resolution": [height, width], "aspect_ratio": [height / width]}
        rows = {name: np.asarray([row], dtype=np.float32) for name, row in told.items()}
        given |= {name: np.repeat(row, sizes["batch"], axis=0) for name, row in rows.items()}
    return given
