"""The config and the description of ``DiTTransformer2DModel``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.component import Component
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.positions import sincos_2d
from perfuse.models.shapes import TIMESTEP, floating

__all__ = ["DiTConfig", "classes_of", "describe", "first_blocks", "host_inputs"]


@dataclass(frozen=True, kw_only=True)
class DiTConfig(ModelConfig):
    """A transformer of patches that is told a class (Peebles and Xie 2022, arXiv:2212.09748)."""

    class_name: ClassVar[str] = "DiTTransformer2DModel"
    strict: ClassVar[bool] = True

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    dropout: float = 0.0
    norm_num_groups: int = 32
    attention_bias: bool = True
    sample_size: int = 32
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    #: The classes. One more stands for none.
    num_embeds_ada_norm: int = 1000
    upcast_attention: bool = False
    norm_type: str = "ada_norm_zero"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        self.check_choice("activation_fn", ("gelu-approximate",))
        self.check_choice("norm_type", ("ada_norm_zero",))
        self.check_choice("norm_elementwise_affine", (False,))
        self.check_choice("out_channels", (None, self.in_channels, 2 * self.in_channels))

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    def held(self, sizes: Mapping[str, int]) -> int:
        tokens = sizes["latent_height"] * sizes["latent_width"] // self.patch_size**2
        return held_by_attention(tokens, self.width)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents and a class in, noise out; a learned variance, which is not used, is left out."""
    dit = DiTConfig.from_dict(config)
    patch = dit.patch_size
    latents = ("batch", dit.in_channels, "latent_height", "latent_width")
    places = (f"latent_height/{patch}", f"latent_width/{patch}", dit.width)
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=dit.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    floating("sample", *latents),
                    TIMESTEP,
                    TensorSpec(name="class_labels", dtype="int64", shape=("batch",)),
                    TensorSpec(name="positions", dtype="float32", shape=places),
                ),
                outputs=(floating("out_sample", *latents),),
            ),
            dims={
                "batch": Dim(example=2),
                "latent_height": Dim(multiple=patch, example=6, smallest=2),
                "latent_width": Dim(multiple=patch, example=4, smallest=2),
            },
            sample_size=(dit.sample_size, dit.sample_size),
            guidance="branches",
        ),
    )


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    dit = DiTConfig.from_dict(component.spec.config)
    return cut(component, first, last, of=dit.num_layers, width=dit.width, patch=dit.patch_size)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Sinusoids of the tokens' places."""
    dit = DiTConfig.from_dict(spec.config)
    patch = dit.patch_size
    size = sizes["latent_height"] // patch, sizes["latent_width"] // patch
    table = sincos_2d(dit.width, size, base=dit.sample_size // patch)
    return {"positions": table.reshape(*size, dit.width)}


def classes_of(spec: ComponentSpec) -> int:
    """How many classes there are; the number after the last one's stands for none."""
    return DiTConfig.from_dict(spec.config).num_embeds_ada_norm
