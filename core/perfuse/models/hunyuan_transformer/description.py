"""The config, the description and the positions of ``HunyuanDiT2DModel``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.architecture import Attended, Attentions
from perfuse.contract.component import Component
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.errors import CheckpointError, InputError
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.positions import rotary_table
from perfuse.models.shapes import TIMESTEP, floating

__all__ = [
    "POOLING_HEADS",
    "HunyuanDiTConfig",
    "attentions",
    "describe",
    "first_blocks",
    "fit",
    "host_inputs",
]

#: Heads of the attention that makes one vector of T5's states.
POOLING_HEADS = 8
#: Latents of a side of the first training, 512 pixels, whose grid larger pictures are stretched to.
_BASE = 64
_ACTIVATIONS = ("gelu-approximate", "geglu", "swiglu")


@dataclass(frozen=True, kw_only=True)
class HunyuanDiTConfig(ModelConfig):
    """A transformer of self-attention, attention to two texts, and skips between its halves."""

    class_name: ClassVar[str] = "HunyuanDiT2DModel"
    strict: ClassVar[bool] = True

    num_attention_heads: int = 16
    attention_head_dim: int = 88
    in_channels: int = 4
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    sample_size: int = 32
    hidden_size: int = 1152
    num_layers: int = 28
    mlp_ratio: float = 4.0
    learn_sigma: bool = True
    cross_attention_dim: int = 1024
    norm_type: str = "layer_norm"
    cross_attention_dim_t5: int = 2048
    pooled_projection_dim: int = 1024
    text_len: int = 77
    text_len_t5: int = 256
    #: Whether it is told the picture's sizes and a style: of versions before 1.2.
    use_style_cond_and_image_meta_size: bool = True

    def __post_init__(self) -> None:
        self.check_choice("activation_fn", _ACTIVATIONS)
        self.check_choice("norm_type", ("layer_norm",))
        self.check_choice("hidden_size", (self.num_attention_heads * self.attention_head_dim,))
        if self.num_layers % 2:
            raise self.error(f"num_layers is {self.num_layers}", "an even number")
        for name, parts in (("attention_head_dim", 4), ("cross_attention_dim_t5", POOLING_HEADS)):
            if getattr(self, name) % parts:
                raise self.error(f"{name} is {getattr(self, name)}", f"a multiple of {parts}")

    def held(self, sizes: Mapping[str, int]) -> int:
        tokens = sizes["latent_height"] * sizes["latent_width"] // self.patch_size**2
        return held_by_attention(tokens, self.hidden_size)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents and the states of two texts in, a velocity out; a learned variance is left out.

    ``image_meta_size`` are heights and widths in pixels: the original's, the picture's, and where it
    was cut. The style is always the one that there is.
    """
    hunyuan = HunyuanDiTConfig.from_dict(config)
    patch, turned = hunyuan.patch_size, hunyuan.attention_head_dim // 4
    latents = ("batch", hunyuan.in_channels, "latent_height", "latent_width")
    inputs = [floating("sample", *latents), TIMESTEP]
    for end, length, width in (
        ("", hunyuan.text_len, hunyuan.cross_attention_dim),
        ("_t5", hunyuan.text_len_t5, hunyuan.cross_attention_dim_t5),
    ):
        mask = TensorSpec(name=f"text_embedding_mask{end}", dtype="int64", shape=("batch", length))
        inputs += [floating(f"encoder_hidden_states{end}", "batch", length, width), mask]
    for side in ("row", "column"):
        along = f"latent_{'height' if side == 'row' else 'width'}/{patch}"
        table = TensorSpec(name=f"{side}_rotary", dtype="float32", shape=(2, along, turned))
        inputs.append(table)
    if hunyuan.use_style_cond_and_image_meta_size:
        inputs.append(TensorSpec(name="image_meta_size", dtype="float32", shape=("batch", 6)))
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=hunyuan.class_name,
            folder=folder,
            config=config,
            signature=Signature(inputs=tuple(inputs), outputs=(floating("out_sample", *latents),)),
            dims={
                "batch": Dim(example=2),
                "latent_height": Dim(multiple=patch, example=6, smallest=2),
                "latent_width": Dim(multiple=patch, example=4, smallest=2),
            },
            sample_size=(hunyuan.sample_size, hunyuan.sample_size),
            guidance="branches",
        ),
    )


def fit(spec: ComponentSpec, others: Mapping[str, ComponentSpec]) -> ComponentSpec:
    """The same; its text encoders must have the widths that it reads.

    Raises:
        CheckpointError: one has another.
    """
    for encoder, end in (("text_encoder", ""), ("text_encoder_2", "_t5")):
        taken = spec.signature.input(f"encoder_hidden_states{end}")
        if encoder not in others or taken is None:
            continue
        wide, wanted = others[encoder].signature.outputs[0].shape[-1], taken.shape[-1]
        if wide != wanted:
            raise CheckpointError(
                f"{encoder} gives states that are {wide} wide; {spec.name} reads {wanted} "
                f"(cross_attention_dim{end}). Take both from one checkpoint."
            )
    return spec


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks.

    Raises:
        InputError: blocks at the end were asked for, too.
    """
    hunyuan = HunyuanDiTConfig.from_dict(component.spec.config)
    if last:
        raise InputError(
            f"last={last} was given; the last blocks of {component.spec.name} read what those in its "
            "first half gave. Leave last out."
        )
    width, patch = hunyuan.hidden_size, hunyuan.patch_size
    return cut(component, first, last, of=hunyuan.num_layers, width=width, patch=patch)


def attentions(spec: ComponentSpec) -> Attentions:
    """In each block one among the picture's tokens, then one to the texts."""
    hunyuan = HunyuanDiTConfig.from_dict(spec.config)
    each = tuple(
        Attended(module=f"blocks.{i}.{name}", kind=kind)
        for i in range(hunyuan.num_layers)
        for name, kind in (("attn1", "spatial"), ("attn2", "cross"))
    )
    return Attentions(each=each, width=hunyuan.hidden_size, patch=hunyuan.patch_size)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Rotary tables of the rows and columns, which lie in the middle of the first training's grid."""
    hunyuan = HunyuanDiTConfig.from_dict(spec.config)
    patch = hunyuan.patch_size
    counts = [sizes[side] // patch for side in ("latent_height", "latent_width")]
    base = _BASE // patch
    given = {}
    for name, count in zip(("row_rotary", "column_rotary"), counts, strict=True):
        stretched = round(base / max(counts) * count)
        start = round((base - stretched) / 2)
        # As Diffusers has it: the end of the grid is scaled, not its length.
        places = np.linspace(start, (start + stretched) * (count - 1) / count, count)
        given[name] = rotary_table(places, hunyuan.attention_head_dim // 2)
    return given
