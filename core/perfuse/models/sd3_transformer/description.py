"""The config and the description of ``SD3Transformer2DModel``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.architecture import Attended, Attentions, Called
from perfuse.contract.component import Component
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.shapes import TIMESTEP, floating

__all__ = ["SD3Config", "attentions", "called", "describe", "first_blocks", "host_inputs"]


@dataclass(frozen=True, kw_only=True)
class SD3Config(ModelConfig):
    """A transformer of blocks with two streams, text and picture."""

    class_name: ClassVar[str] = "SD3Transformer2DModel"
    strict: ClassVar[bool] = True

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    def __post_init__(self) -> None:
        self.check_choice("qk_norm", (None, "rms_norm"))
        self.check_choice("caption_projection_dim", (self.width,))

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    def held(self, sizes: Mapping[str, int]) -> int:
        height, width = sizes["latent_height"], sizes["latent_width"]
        return held_by_attention(height * width // self.patch_size**2, self.width)

    @property
    def drawn(self) -> int:
        """Channels of what is predicted."""
        return self.in_channels if self.out_channels is None else self.out_channels


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents, text states and pooled text in, a velocity out."""
    sd3 = SD3Config.from_dict(config)
    patch = sd3.patch_size
    sides = (("latent_height", "rows"), ("latent_width", "columns"))
    inputs = (
        floating("sample", "batch", sd3.in_channels, "latent_height", "latent_width"),
        TIMESTEP,
        floating("encoder_hidden_states", "batch", "sequence", sd3.joint_attention_dim),
        floating("pooled_projections", "batch", sd3.pooled_projection_dim),
        *(TensorSpec(name=n, dtype="int64", shape=(f"{side}/{patch}",)) for side, n in sides),
    )
    out = floating("out_sample", "batch", sd3.drawn, "latent_height", "latent_width")
    most = sd3.pos_embed_max_size * patch
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=sd3.class_name,
            folder=folder,
            config=config,
            signature=Signature(inputs=inputs, outputs=(out,)),
            dims={
                "batch": Dim(example=2),
                "latent_height": Dim(multiple=patch, maximum=most, example=6, smallest=2),
                "latent_width": Dim(multiple=patch, maximum=most, example=4, smallest=2),
                "sequence": Dim(example=7, smallest=2),
            },
            sample_size=(sd3.sample_size, sd3.sample_size),
            guidance="branches",
        ),
    )


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    sd3 = SD3Config.from_dict(component.spec.config)
    return cut(
        component, first, last, of=sd3.num_layers, width=sd3.width, patch=sd3.patch_size, between=0
    )


def attentions(spec: ComponentSpec) -> Attentions:
    """In each block one of picture and text together; in ``dual`` ones one of the picture after that."""
    sd3 = SD3Config.from_dict(spec.config)
    each: list[Attended] = []
    for i in range(sd3.num_layers):
        block = f"transformer_blocks.{i}"
        each.append(Attended(module=f"{block}.attn", kind="spatial", joint=True))
        if i in sd3.dual_attention_layers:
            each.append(Attended(module=f"{block}.attn2", kind="spatial"))
    return Attentions(each=tuple(each), width=sd3.width, patch=sd3.patch_size)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """The rows and columns of the table of positions, of which the picture has the middle."""
    sd3 = SD3Config.from_dict(spec.config)
    sides = {"rows": sizes["latent_height"], "columns": sizes["latent_width"]}
    return {n: _middle(sd3.pos_embed_max_size, side // sd3.patch_size) for n, side in sides.items()}


def called(spec: ComponentSpec, arguments: Mapping[str, Any]) -> Called | None:
    """Diffusers' call: the same under other names."""
    names = {"hidden_states": "sample", "timestep": "timestep"}
    names |= {name: name for name in ("encoder_hidden_states", "pooled_projections")}
    if arguments.keys() != names.keys():
        return None
    return {ours: arguments[name] for name, ours in names.items()}, lambda outputs: [
        outputs["out_sample"]
    ]


def _middle(whole: int, part: int) -> Array:
    first = (whole - part) // 2
    return np.arange(first, first + part, dtype=np.int64)
