"""The config, the description and the positions of ``CogView4Transformer2DModel``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.component import Component
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.positions import rotary_table
from perfuse.models.shapes import TIMESTEP, floating

__all__ = ["CogView4Config", "describe", "first_blocks", "host_inputs"]


@dataclass(frozen=True, kw_only=True)
class CogView4Config(ModelConfig):
    """A transformer of text and picture in one sequence, told the picture's size."""

    class_name: ClassVar[str] = "CogView4Transformer2DModel"
    strict: ClassVar[bool] = True

    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    num_layers: int = 30
    attention_head_dim: int = 40
    num_attention_heads: int = 64
    text_embed_dim: int = 4096
    time_embed_dim: int = 512
    condition_dim: int = 256
    pos_embed_max_size: int = 128
    sample_size: int = 128
    rope_axes_dim: tuple[int, ...] = (256, 256)

    def __post_init__(self) -> None:
        self.check_choice("out_channels", (self.in_channels,))
        if len(self.rope_axes_dim) != 2:
            raise self.error(f"rope_axes_dim is {self.rope_axes_dim}", "two numbers")

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    def held(self, sizes: Mapping[str, int]) -> int:
        tokens = sizes["latent_height"] * sizes["latent_width"] // self.patch_size**2
        return held_by_attention(tokens, self.width)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents and text states in, a velocity out.

    ``sizes`` are heights and widths in pixels: the original's, where it was cut, and the picture's.
    """
    cogview = CogView4Config.from_dict(config)
    patch = cogview.patch_size
    latents = ("batch", cogview.in_channels, "latent_height", "latent_width")
    turned = cogview.attention_head_dim // 4

    def table(label: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=label, dtype="float32", shape=shape)

    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=cogview.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    floating("sample", *latents),
                    TIMESTEP,
                    floating("encoder_hidden_states", "batch", "sequence", cogview.text_embed_dim),
                    floating("text_bias", "batch", "sequence"),
                    table("sizes", "batch", 6),
                    table("row_rotary", 2, f"latent_height/{patch}", turned),
                    table("column_rotary", 2, f"latent_width/{patch}", turned),
                ),
                outputs=(floating("out_sample", *latents),),
            ),
            dims={
                "batch": Dim(example=2),
                "latent_height": Dim(multiple=patch, example=6, smallest=2),
                "latent_width": Dim(multiple=patch, example=4, smallest=2),
                "sequence": Dim(example=7, smallest=2),
            },
            sample_size=(cogview.sample_size, cogview.sample_size),
            guidance="branches",
            reads_layers=(-2,),
        ),
    )


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    cogview = CogView4Config.from_dict(component.spec.config)
    width, patch = cogview.width, cogview.patch_size
    return cut(component, first, last, of=cogview.num_layers, width=width, patch=patch, between=0)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Rotary tables of the rows and columns, which lie on a grid of the training's size."""
    cogview = CogView4Config.from_dict(spec.config)
    names = {"row_rotary": "latent_height", "column_rotary": "latent_width"}
    given = {}
    for (name, side), whole in zip(names.items(), cogview.rope_axes_dim, strict=True):
        count = sizes[side] // cogview.patch_size
        places = np.arange(count) * whole // count
        given[name] = rotary_table(places, cogview.attention_head_dim // 2)
    return given
