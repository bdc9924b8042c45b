"""The config and the description of ``SanaTransformer2DModel``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.architecture import Attended, Attentions, Called
from perfuse.contract.component import Component
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.positions import sincos_2d
from perfuse.models.shapes import TIMESTEP, floating

__all__ = ["SanaConfig", "attentions", "called", "describe", "first_blocks", "host_inputs"]

#: Tokens of a prompt in training.
_TEXT = 300


@dataclass(frozen=True, kw_only=True)
class SanaConfig(ModelConfig):
    """A transformer of linear attention, attention to the text and a gated convolution."""

    class_name: ClassVar[str] = "SanaTransformer2DModel"
    strict: ClassVar[bool] = True

    in_channels: int = 32
    out_channels: int | None = 32
    num_attention_heads: int = 70
    attention_head_dim: int = 32
    num_layers: int = 20
    num_cross_attention_heads: int | None = 20
    cross_attention_head_dim: int | None = 112
    cross_attention_dim: int | None = 2240
    caption_channels: int = 2304
    mlp_ratio: float = 2.5
    dropout: float = 0.0
    attention_bias: bool = False
    sample_size: int = 32
    patch_size: int = 1
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    interpolation_scale: float | None = None
    guidance_embeds: bool = False
    guidance_embeds_scale: float = 0.1
    qk_norm: str | None = None
    timestep_scale: float = 1.0

    def __post_init__(self) -> None:
        self.check_choice("norm_elementwise_affine", (False,))
        self.check_choice("qk_norm", (None, "rms_norm_across_heads"))
        self.check_choice("cross_attention_dim", (self.width,))
        if None in (self.num_cross_attention_heads, self.cross_attention_head_dim):
            raise self.error("it has no heads to attend to text with", "their number and width")

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    def held(self, sizes: Mapping[str, int]) -> int:
        height, width = sizes["latent_height"], sizes["latent_width"]
        return held_by_attention(height * width // self.patch_size**2, self.width)

    @property
    def predicted(self) -> int:
        """Channels of what is predicted; twice those of the latents with a learned variance."""
        return self.in_channels if self.out_channels is None else self.out_channels


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents and text states in, a velocity out.

    A distilled model (``guidance_embeds``) takes angles for timesteps, and predicts what consistency
    models in trigonometric form do.
    """
    sana = SanaConfig.from_dict(config)
    patch = sana.patch_size
    latents = (sana.in_channels, "latent_height", "latent_width")
    inputs = [
        floating("sample", "batch", *latents),
        TIMESTEP,
        floating("encoder_hidden_states", "batch", "sequence", sana.caption_channels),
        TensorSpec(name="encoder_attention_mask", dtype="int64", shape=("batch", "sequence")),
    ]
    if sana.guidance_embeds:
        inputs.append(TensorSpec(name="guidance", dtype="float32", shape=("batch",)))
    if sana.interpolation_scale is not None:
        sides = ("latent_height", "latent_width")
        places = sides if patch == 1 else tuple(f"{side}/{patch}" for side in sides)
        inputs.append(TensorSpec(name="positions", dtype="float32", shape=(*places, sana.width)))
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=sana.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=tuple(inputs), outputs=(floating("out_sample", "batch", *latents),)
            ),
            dims={
                "batch": Dim(example=2),
                "latent_height": Dim(multiple=patch, example=6, smallest=2),
                "latent_width": Dim(multiple=patch, example=4, smallest=2),
                "sequence": Dim(maximum=_TEXT, example=7, smallest=2),
            },
            sample_size=(sana.sample_size, sana.sample_size),
            guidance="embedded" if sana.guidance_embeds else "branches",
            reads_layers=(-1,),
        ),
    )


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    sana = SanaConfig.from_dict(component.spec.config)
    return cut(component, first, last, of=sana.num_layers, width=sana.width, patch=sana.patch_size)


def attentions(spec: ComponentSpec) -> Attentions:
    """In each block one among the picture's tokens, then one to the text."""
    sana = SanaConfig.from_dict(spec.config)
    each = tuple(
        Attended(module=f"transformer_blocks.{i}.{name}", kind=kind)
        for i in range(sana.num_layers)
        for name, kind in (("attn1", "spatial"), ("attn2", "cross"))
    )
    return Attentions(each=each, width=sana.width, patch=sana.patch_size)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """Sinusoids of the tokens' places, where the model knows places; the guidance scale."""
    sana = SanaConfig.from_dict(spec.config)
    given: dict[str, Any] = {}
    if sana.interpolation_scale is not None:
        patch, stretch = sana.patch_size, sana.interpolation_scale
        size = sizes["latent_height"] // patch, sizes["latent_width"] // patch
        base = sana.sample_size // patch
        table = sincos_2d(sana.width, size, base=base, interpolation_scale=stretch)
        given["positions"] = table.reshape(*size, sana.width)
    if sana.guidance_embeds:
        scale = (1.0 if guidance is None else guidance) * sana.guidance_embeds_scale
        given["guidance"] = np.full(sizes["batch"], scale, dtype=np.float32)
    return given


def called(spec: ComponentSpec, arguments: Mapping[str, Any]) -> Called | None:
    """Diffusers' call: the same under other names; of a distilled model it is another one."""
    names = {"hidden_states": "sample", "timestep": "timestep"}
    names |= {name: name for name in ("encoder_hidden_states", "encoder_attention_mask")}
    if arguments.keys() != names.keys() or SanaConfig.from_dict(spec.config).guidance_embeds:
        return None
    return {ours: arguments[name] for name, ours in names.items()}, lambda outputs: [
        outputs["out_sample"]
    ]
