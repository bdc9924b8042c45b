"""The config, the latents and the host's tables of ``ChromaTransformer2DModel``, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.architecture import Attentions
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
    "ChromaConfig",
    "ChromaLatents",
    "attentions",
    "describe",
    "first_blocks",
    "host_inputs",
    "latents",
]

#: Tokens of a prompt in training.
_TEXT = 512


@dataclass(frozen=True, kw_only=True)
class ChromaConfig(ModelConfig):
    """FLUX.1's blocks, and a small network that makes the modulations of all of them."""

    class_name: ClassVar[str] = "ChromaTransformer2DModel"
    strict: ClassVar[bool] = True

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    approximator_num_channels: int = 64
    approximator_hidden_dim: int = 5120
    approximator_layers: int = 5

    def __post_init__(self) -> None:
        self.check_choice("patch_size", (1,))
        if sum(self.axes_dims_rope) != self.attention_head_dim or len(self.axes_dims_rope) != 3:
            raise self.error(
                f"axes_dims_rope is {self.axes_dims_rope}",
                f"three numbers that add up to attention_head_dim, {self.attention_head_dim}",
            )
        if self.approximator_num_channels % 8:
            channels = self.approximator_num_channels
            raise self.error(f"approximator_num_channels is {channels}", "a multiple of 8")

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_attention(sizes["image_sequence"], self.width)

    @property
    def waves(self) -> int:
        """Sinusoids of the timestep, of the guidance scale, and twice as many of a modulation."""
        return self.approximator_num_channels // 4

    @property
    def modulations(self) -> int:
        """How many vectors modulate: three a block of one stream, twice six a block of two, two."""
        return 3 * self.num_single_layers + 2 * 6 * self.num_layers + 2


@dataclass(frozen=True, kw_only=True)
class ChromaLatents(PackedLatents):
    """Chroma's latents: two by two of the autoencoder's a token."""

    kind: ClassVar[str] = "ChromaTransformer2DModel"


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Packed latents and text states in, a velocity out."""
    chroma = ChromaConfig.from_dict(config)
    half = chroma.attention_head_dim // 2
    numbers = (chroma.modulations, 2 * chroma.waves)
    inputs = (
        floating("sample", "batch", "image_sequence", chroma.in_channels),
        TIMESTEP,
        floating("encoder_hidden_states", "batch", "sequence", chroma.joint_attention_dim),
        TensorSpec(name="encoder_attention_mask", dtype="int64", shape=("batch", "sequence")),
        TensorSpec(name="text_rotary", dtype="float32", shape=(2, "sequence", half)),
        TensorSpec(name="image_rotary", dtype="float32", shape=(2, "image_sequence", half)),
        TensorSpec(name="modulation_waves", dtype="float32", shape=numbers),
    )
    out = chroma.out_channels if chroma.out_channels is not None else chroma.in_channels
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=chroma.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=inputs, outputs=(floating("out_sample", "batch", "image_sequence", out),)
            ),
            dims={
                "batch": Dim(example=2),
                "image_sequence": Dim(example=12, smallest=2),
                "sequence": Dim(maximum=_TEXT, example=7, smallest=2),
            },
            sample_size=(128, 128),  # no config has it: 1024 pixels, as the pipelines draw
            guidance="branches",
        ),
    )


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> LatentSpec | None:
    """The autoencoder's latents, packed."""
    return packed(ChromaLatents, inner)


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    chroma = ChromaConfig.from_dict(component.spec.config)
    return cut(
        component,
        first,
        last,
        of=chroma.num_layers + chroma.num_single_layers,
        width=chroma.width,
        between=0,
    )


def attentions(spec: ComponentSpec) -> Attentions:
    """Those of picture and text together: of two streams, then of one sequence."""
    chroma = ChromaConfig.from_dict(spec.config)
    return joint_attentions(
        chroma.width,
        ("transformer_blocks", chroma.num_layers),
        ("single_transformer_blocks", chroma.num_single_layers),
    )


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Rotary tables of the text, which has no places, and of the picture; each modulation's number."""
    chroma = ChromaConfig.from_dict(spec.config)
    axes = chroma.axes_dims_rope
    picture = grid(sizes["latent_height"] // 2, sizes["latent_width"] // 2, 0)
    return {
        "text_rotary": rotary_axes(np.zeros((sizes["sequence"], len(axes))), axes),
        "image_rotary": rotary_axes(picture, axes),
        "modulation_waves": _numbers(chroma.modulations, chroma.waves),
    }


def _numbers(count: int, half: int) -> Array:
    """Sinusoids of a thousand times each number: float32 [count, 2 · half].

    Frequencies and phases are rounded to float32, as they were in training: phases are up to some
    hundred thousand, where that is much of a turn.
    """
    exponents = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    phases = (np.arange(count, dtype=np.float32) * 1000)[:, None] * frequencies
    wide = phases.astype(np.float64)
    return np.concatenate([np.cos(wide), np.sin(wide)], axis=1).astype(np.float32)
