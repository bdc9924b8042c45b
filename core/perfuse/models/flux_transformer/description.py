"""The config and the description of ``FluxTransformer2DModel``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.architecture import Attentions, Called
from perfuse.contract.component import Component
from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.broadcast import joint_attentions
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.packed_latents import PackedLatents, packed
from perfuse.models.positions import grid, rotary_axes
from perfuse.models.shapes import TIMESTEP, floating

__all__ = [
    "FluxConfig",
    "FluxLatents",
    "attentions",
    "called",
    "describe",
    "first_blocks",
    "host_inputs",
    "latents",
]

#: The position of text, and of the picture that is drawn, on the first axis.
_TEXT = _PICTURE = 0
#: The position of a picture to edit, of which Kontext was trained with one.
_REFERENCE = 1


@dataclass(frozen=True, kw_only=True)
class FluxConfig(ModelConfig):
    """A transformer of blocks with two streams, text and picture, then of blocks with one."""

    class_name: ClassVar[str] = "FluxTransformer2DModel"
    strict: ClassVar[bool] = True

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self) -> None:
        self.check_choice("patch_size", (1,))
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
class FluxLatents(PackedLatents):
    """Flux's latents: two by two of the autoencoder's a token."""

    kind: ClassVar[str] = "FluxTransformer2DModel"


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Packed latents, text states and pooled text in, a velocity out."""
    flux = FluxConfig.from_dict(config)
    half = flux.attention_head_dim // 2
    inputs = [
        floating("sample", "batch", "image_sequence", flux.in_channels),
        TIMESTEP,
        floating("encoder_hidden_states", "batch", "sequence", flux.joint_attention_dim),
        floating("pooled_projections", "batch", flux.pooled_projection_dim),
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
            sample_size=(128, 128),  # no config has it: 1024 pixels, as the pipelines draw
            guidance="embedded" if flux.guidance_embeds else "",
        ),
    )


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> LatentSpec | None:
    """The autoencoder's latents, packed."""
    return packed(FluxLatents, inner)


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    flux = FluxConfig.from_dict(component.spec.config)
    return cut(
        component,
        first,
        last,
        of=flux.num_layers + flux.num_single_layers,
        width=flux.width,
        between=0,
    )


def attentions(spec: ComponentSpec) -> Attentions:
    """Those of picture and text together: of two streams, then of one sequence."""
    flux = FluxConfig.from_dict(spec.config)
    return joint_attentions(
        flux.width,
        ("transformer_blocks", flux.num_layers),
        ("single_transformer_blocks", flux.num_single_layers),
    )


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Rotary tables of the text, which has no places, and of the pictures; the guidance scale."""
    flux = FluxConfig.from_dict(spec.config)
    axes = flux.axes_dims_rope
    text = np.full((sizes["sequence"], len(axes)), _TEXT)
    pictures = [grid(sizes["latent_height"] // 2, sizes["latent_width"] // 2, _PICTURE)]
    if "reference_0_height" in sizes:
        shape = sizes["reference_0_height"] // 2, sizes["reference_0_width"] // 2
        pictures.append(grid(*shape, _REFERENCE))
    image = rotary_axes(np.concatenate(pictures), axes)
    given = {"text_rotary": rotary_axes(text, axes), "image_rotary": image}
    if flux.guidance_embeds:
        scale = 1.0 if guidance is None else guidance
        given["guidance"] = np.full(sizes["batch"], scale, dtype=np.float32)
    return given


def called(spec: ComponentSpec, arguments: Mapping[str, Any]) -> Called | None:
    """Diffusers' call: timesteps are 0 to 1, and it is told where each token is."""
    flux = FluxConfig.from_dict(spec.config)
    same = ["encoder_hidden_states", "pooled_projections"]
    same += ["guidance"] if flux.guidance_embeds else []
    places = {"txt_ids": "text_rotary", "img_ids": "image_rotary"}
    if arguments.keys() != {"hidden_states", "timestep", *same, *places}:
        return None
    if any(np.ndim(arguments[name]) != 2 for name in places):
        return None
    axes = flux.axes_dims_rope
    inputs = {name: arguments[name] for name in same}
    inputs |= {"sample": arguments["hidden_states"], "timestep": arguments["timestep"] * 1000}
    inputs |= {table: rotary_axes(arguments[name], axes) for name, table in places.items()}
    return inputs, lambda outputs: [outputs["out_sample"]]
