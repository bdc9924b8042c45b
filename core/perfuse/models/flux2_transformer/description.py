"""The config, the latents and the positions of ``Flux2Transformer2DModel``, without torch.

A position has four axes: which picture, its row, its column, and the place of a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.arrays import is_torch
from perfuse.contract.component import Component
from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.positions import grid, rotary_axes
from perfuse.models.shapes import TIMESTEP, floating

__all__ = ["Flux2Config", "Flux2Latents", "describe", "first_blocks", "host_inputs", "latents"]

#: The position on the first axis of text and of the picture that is drawn; those of the pictures to
#: edit are this far apart, and from it.
_FIRST, _APART = 0, 10


@dataclass(frozen=True, kw_only=True)
class Flux2Config(ModelConfig):
    """A transformer of blocks with two streams, text and picture, then of blocks with one."""

    class_name: ClassVar[str] = "Flux2Transformer2DModel"
    strict: ClassVar[bool] = True

    patch_size: int = 1
    in_channels: int = 128
    out_channels: int | None = None
    num_layers: int = 8
    num_single_layers: int = 48
    attention_head_dim: int = 128
    num_attention_heads: int = 48
    joint_attention_dim: int = 15360
    timestep_guidance_channels: int = 256
    mlp_ratio: float = 3.0
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: int = 2000
    eps: float = 1e-6
    guidance_embeds: bool = True
    #: Patches of latents of a picture's side. Of perfuse's own: in Diffusers it is always 64.
    sample_size: int = 64

    def __post_init__(self) -> None:
        self.check_choice("patch_size", (1,))
        if sum(self.axes_dims_rope) != self.attention_head_dim or len(self.axes_dims_rope) != 4:
            raise self.error(
                f"axes_dims_rope is {self.axes_dims_rope}",
                f"four numbers that add up to attention_head_dim, {self.attention_head_dim}",
            )

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_attention(sizes["image_sequence"], self.width)

    @property
    def inner(self) -> int:
        """Channels inside of a feed-forward network, after its gate."""
        return int(self.width * self.mlp_ratio)


@dataclass(frozen=True, kw_only=True)
class Flux2Latents(LatentSpec):
    """Patches of latents [B, C, h, w], packed to tokens [B, h · w, C]."""

    kind: ClassVar[str] = "Flux2Transformer2DModel"

    @property
    def channel_axis(self) -> int:
        return 2

    def dims(self, height: int, width: int) -> dict[str, int]:
        """The autoencoder's, and ``image_sequence``, the number of tokens."""
        dims = super().dims(height, width)
        return {**dims, "image_sequence": dims["latent_height"] * dims["latent_width"]}

    def encode(self, latents: Array) -> Array:
        return latents

    def decode(self, latents: Array) -> Array:
        return latents

    def pack(self, latents: Array) -> Array:
        return _swapped(latents.reshape(*latents.shape[:2], -1))

    def unpack(self, latents: Array, height: int, width: int) -> Array:
        height, width = height // self.downscale, width // self.downscale
        return _swapped(latents).reshape(latents.shape[0], -1, height, width)


def _swapped(array: Any) -> Any:
    """[A, B, C] to [A, C, B]."""
    return array.permute(0, 2, 1) if is_torch(array) else array.transpose(0, 2, 1)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Packed latents and text states in, a velocity out."""
    flux = Flux2Config.from_dict(config)
    half = flux.attention_head_dim // 2
    inputs = [
        floating("sample", "batch", "image_sequence", flux.in_channels),
        TIMESTEP,
        floating("encoder_hidden_states", "batch", "sequence", flux.joint_attention_dim),
        TensorSpec(name="text_rotary", dtype="float32", shape=(2, "sequence", half)),
        TensorSpec(name="image_rotary", dtype="float32", shape=(2, "image_sequence", half)),
    ]
    if flux.guidance_embeds:
        inputs.append(TensorSpec(name="guidance", dtype="float32", shape=("batch",)))
    out = flux.out_channels if flux.out_channels is not None else flux.in_channels
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=flux.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=tuple(inputs),
                outputs=(floating("out_sample", "batch", "image_sequence", out),),
            ),
            dims={
                "batch": Dim(example=2),
                "image_sequence": Dim(example=12, smallest=2),
                "sequence": Dim(example=7, smallest=2),
            },
            sample_size=(flux.sample_size, flux.sample_size),
            guidance="embedded" if flux.guidance_embeds else "branches",
            reads_layers=(9, 18, 27),
        ),
    )


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> LatentSpec | None:
    """The autoencoder's patches, packed."""
    if inner is None:
        return None
    return Flux2Latents(channels=inner.channels, downscale=inner.downscale, tile=inner.tile)


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    flux = Flux2Config.from_dict(component.spec.config)
    return cut(
        component,
        first,
        last,
        of=flux.num_layers + flux.num_single_layers,
        width=flux.width,
        between=0,
    )


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Rotary tables of the text and of the pictures; the guidance scale where it is embedded."""
    flux = Flux2Config.from_dict(spec.config)
    axes, theta = flux.axes_dims_rope, float(flux.rope_theta)
    words = np.zeros((sizes["sequence"], len(axes)))
    words[:, 3] = np.arange(sizes["sequence"])
    pictures = [_places(sizes["latent_height"], sizes["latent_width"], _FIRST)]
    while (name := f"reference_{len(pictures) - 1}_height") in sizes:
        width = sizes[name.removesuffix("height") + "width"]
        pictures.append(_places(sizes[name], width, len(pictures) * _APART))
    given = {
        "text_rotary": rotary_axes(words, axes, theta),
        "image_rotary": rotary_axes(np.concatenate(pictures), axes, theta),
    }
    if flux.guidance_embeds:
        scale = 1.0 if guidance is None else guidance
        given["guidance"] = np.full(sizes["batch"], scale, dtype=np.float32)
    return given


def _places(height: int, width: int, picture: int) -> Array:
    """The four axes of a picture's tokens, row by row, [N, 4]."""
    return np.pad(grid(height, width, picture), ((0, 0), (0, 1)))
