"""The config and the description of ``AuraFlowTransformer2DModel``, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.architecture import Attentions
from perfuse.contract.component import Component
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.broadcast import joint_attentions
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.shapes import TIMESTEP, floating

__all__ = ["REGISTERS", "AuraFlowConfig", "attentions", "describe", "first_blocks", "host_inputs"]

#: Tokens before the text's that stand for nothing (Darcet et al. 2023, arXiv:2309.16588).
REGISTERS = 8
#: What the width inside of a feed-forward network is a multiple of.
_MULTIPLE = 256


@dataclass(frozen=True, kw_only=True)
class AuraFlowConfig(ModelConfig):
    """A transformer of blocks with two streams, text and picture, and then of blocks with one."""

    class_name: ClassVar[str] = "AuraFlowTransformer2DModel"
    strict: ClassVar[bool] = True

    sample_size: int = 64
    patch_size: int = 2
    in_channels: int = 4
    num_mmdit_layers: int = 4
    num_single_dit_layers: int = 32
    attention_head_dim: int = 256
    num_attention_heads: int = 12
    joint_attention_dim: int = 2048
    caption_projection_dim: int = 3072
    out_channels: int | None = 4
    #: Places that have a learned vector, in rows and columns of equal length.
    pos_embed_max_size: int = 1024

    def __post_init__(self) -> None:
        self.check_choice("caption_projection_dim", (self.width,))
        self.check_choice("out_channels", (None, self.in_channels))
        self.check_choice("pos_embed_max_size", (self.side**2,))

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def inner(self) -> int:
        """Channels inside of a feed-forward network."""
        return -(-int(8 * self.width / 3) // _MULTIPLE) * _MULTIPLE

    @property
    def side(self) -> int:
        """The most tokens of a picture's side."""
        return math.isqrt(self.pos_embed_max_size)

    def held(self, sizes: Mapping[str, int]) -> int:
        tokens = sizes["latent_height"] * sizes["latent_width"] // self.patch_size**2
        return held_by_attention(tokens, self.width)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents and text states in, a velocity out; ``places`` are the numbers of learned vectors."""
    aura = AuraFlowConfig.from_dict(config)
    patch = aura.patch_size
    latents = ("batch", aura.in_channels, "latent_height", "latent_width")
    tokens = (f"latent_height/{patch}", f"latent_width/{patch}")
    most = aura.side * patch
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=aura.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    floating("sample", *latents),
                    TIMESTEP,
                    floating(
                        "encoder_hidden_states", "batch", "sequence", aura.joint_attention_dim
                    ),
                    TensorSpec(name="places", dtype="int64", shape=tokens),
                ),
                outputs=(floating("out_sample", *latents),),
            ),
            dims={
                "batch": Dim(example=2),
                "latent_height": Dim(multiple=patch, maximum=most, example=6, smallest=2),
                "latent_width": Dim(multiple=patch, maximum=most, example=4, smallest=2),
                "sequence": Dim(example=7, smallest=2),
            },
            sample_size=(aura.sample_size, aura.sample_size),
            guidance="branches",
        ),
    )


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    aura = AuraFlowConfig.from_dict(component.spec.config)
    count = aura.num_mmdit_layers + aura.num_single_dit_layers
    return cut(
        component, first, last, of=count, width=aura.width, patch=aura.patch_size, between=REGISTERS
    )


def attentions(spec: ComponentSpec) -> Attentions:
    """Those of picture and text together: of two streams, then of one sequence."""
    aura = AuraFlowConfig.from_dict(spec.config)
    return joint_attentions(
        aura.width,
        ("joint_transformer_blocks", aura.num_mmdit_layers),
        ("single_transformer_blocks", aura.num_single_dit_layers),
        aura.patch_size,
    )


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """The places in the middle of the table of learned vectors, row by row."""
    aura = AuraFlowConfig.from_dict(spec.config)
    rows, columns = (
        aura.side // 2 - length // 2 + np.arange(length)
        for length in (sizes[side] // aura.patch_size for side in ("latent_height", "latent_width"))
    )
    return {"places": rows[:, None] * aura.side + columns}
