"""The config, the latents and the positions of ``QwenImageTransformer2DModel``, without torch.

A position has three axes: which picture, its row and its column, both from the picture's middle. A
word has one number for all three, beyond those of the picture.
"""

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
    "QwenImageConfig",
    "QwenImageLatents",
    "attentions",
    "describe",
    "first_blocks",
    "host_inputs",
    "latents",
]


@dataclass(frozen=True, kw_only=True)
class QwenImageConfig(ModelConfig):
    """A transformer of blocks with two streams, text and picture (arXiv:2508.02324)."""

    class_name: ClassVar[str] = "QwenImageTransformer2DModel"
    strict: ClassVar[bool] = True

    patch_size: int = 2
    in_channels: int = 64
    out_channels: int | None = 16
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    #: Whether tokens of pictures to edit are told that there is no noise in them.
    zero_cond_t: bool = False
    use_additional_t_cond: bool = False
    use_layer3d_rope: bool = False
    #: Latents of a picture's side. Of perfuse's own: in Diffusers it is always 128.
    sample_size: int = 128

    def __post_init__(self) -> None:
        self.check_choice("patch_size", (2,))
        for name in ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope"):
            self.check_choice(name, (False,))
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

    @property
    def token_channels(self) -> int:
        """Channels of a token that it predicts."""
        channels = self.in_channels if self.out_channels is None else self.out_channels
        return self.patch_size**2 * channels


@dataclass(frozen=True, kw_only=True)
class QwenImageLatents(PackedLatents):
    """Qwen-Image's latents: two by two of the autoencoder's a token."""

    kind: ClassVar[str] = "QwenImageTransformer2DModel"


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Packed latents and text states in, a velocity out; ``text_bias`` hides what fills texts up."""
    model = QwenImageConfig.from_dict(config)
    half = model.attention_head_dim // 2
    told_apart = (floating("without_noise", "image_sequence"),) if model.zero_cond_t else ()
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
                    floating(
                        "encoder_hidden_states", "batch", "sequence", model.joint_attention_dim
                    ),
                    floating("text_bias", "batch", "sequence"),
                    TensorSpec(name="text_rotary", dtype="float32", shape=(2, "sequence", half)),
                    TensorSpec(
                        name="image_rotary", dtype="float32", shape=(2, "image_sequence", half)
                    ),
                    *told_apart,
                ),
                outputs=(floating("out_sample", "batch", "image_sequence", model.token_channels),),
            ),
            dims={
                "batch": Dim(example=2),
                "image_sequence": Dim(example=12, smallest=2),
                "sequence": Dim(example=7, smallest=2),
            },
            sample_size=(model.sample_size, model.sample_size),
            guidance="branches",
            reads_layers=(-1,),
        ),
    )


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> LatentSpec | None:
    """The autoencoder's latents, packed."""
    return packed(QwenImageLatents, inner)


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    model = QwenImageConfig.from_dict(component.spec.config)
    return cut(component, first, last, of=model.num_layers, width=model.width, between=0)


def attentions(spec: ComponentSpec) -> Attentions:
    """One of picture and text together in each block."""
    model = QwenImageConfig.from_dict(spec.config)
    return joint_attentions(model.width, ("transformer_blocks", model.num_layers))


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Rotary tables of the text and of the pictures, and which tokens have no noise in them."""
    config = QwenImageConfig.from_dict(spec.config)
    axes = config.axes_dims_rope
    shapes = [(sizes["latent_height"] // 2, sizes["latent_width"] // 2)]
    while (name := f"reference_{len(shapes) - 1}_height") in sizes:
        width = sizes[name.removesuffix("height") + "width"]
        shapes.append((sizes[name] // 2, width // 2))
    pictures = [_places(*shape, i) for i, shape in enumerate(shapes)]
    beyond = max(side // 2 for shape in shapes for side in shape)
    words = np.repeat(beyond + np.arange(sizes["sequence"])[:, None], len(axes), axis=1)
    found = {
        "text_rotary": rotary_axes(words, axes),
        "image_rotary": rotary_axes(np.concatenate(pictures), axes),
    }
    if config.zero_cond_t:
        others = sum(map(len, pictures[1:]))
        found["without_noise"] = np.repeat(
            np.array([0, 1], dtype=np.float32), [len(pictures[0]), others]
        )
    return found


def _places(height: int, width: int, picture: int) -> Array:
    """The three axes of a picture's tokens, row by row, [N, 3]."""
    middle = np.array([0, height - height // 2, width - width // 2])
    return grid(height, width, picture) - middle
