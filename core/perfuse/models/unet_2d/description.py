"""The config and the description of ``UNet2DModel``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.latents import LatentSpec, PixelLatents
from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_skips
from perfuse.models.shapes import TIMESTEP, floating, pair

__all__ = ["UNet2DConfig", "class_labels", "describe", "latents"]


@dataclass(frozen=True, kw_only=True)
class UNet2DConfig(ModelConfig):
    """An unconditional or class-conditional UNet. ``attention_head_dim`` is the size of a head."""

    class_name: ClassVar[str] = "UNet2DModel"

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self) -> None:
        self.check_blocks(
            ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
            ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        )
        self.check_choice("mid_block_type", ("UNetMidBlock2D", None))
        self.check_choice("time_embedding_type", ("positional", "fourier", "learned"))
        self.check_choice("class_embed_type", (None, "timestep", "identity"))
        self.check_choice("resnet_time_scale_shift", ("default", "scale_shift"))
        self.check_choice("downsample_type", ("conv", "resnet"))
        self.check_choice("upsample_type", ("conv", "resnet"))
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise self.error(
                "time_embedding_type is 'learned' and num_train_timesteps is missing",
                "the number of timesteps it learned",
            )

    def held(self, sizes: Mapping[str, int]) -> int:
        layers = (self.layers_per_block,) * len(self.block_out_channels)
        return held_by_skips(sizes, self.block_out_channels, layers)

    @property
    def downscale(self) -> int:
        """The downsampling factor of the innermost block; sizes must be multiples of it."""
        return int(2 ** (len(self.block_out_channels) - 1))


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """An unconditional UNet: pixels in, a prediction of the same size out."""
    unet = UNet2DConfig.from_dict(config)
    inputs = [floating("sample", "batch", unet.in_channels, "height", "width"), TIMESTEP]
    if unet.num_class_embeds is not None or unet.class_embed_type is not None:
        inputs.append(class_labels(unet.class_embed_type, unet.block_out_channels[0] * 4))
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=unet.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=tuple(inputs),
                outputs=(floating("out_sample", "batch", unet.out_channels, "height", "width"),),
            ),
            dims={
                "batch": Dim(example=2),
                "height": Dim(multiple=unet.downscale, example=96, smallest=64),
                "width": Dim(multiple=unet.downscale, example=64, smallest=64),
            },
            sample_size=pair(unet.sample_size),
        ),
    )


def class_labels(kind: str | None, width: int) -> TensorSpec:
    """The class input of a class-conditional model."""
    if kind is None:
        return TensorSpec(name="class_labels", dtype="int64", shape=("batch",))
    if kind == "timestep":
        return TensorSpec(name="class_labels", dtype="float32", shape=("batch",))
    return floating("class_labels", "batch", width)


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> LatentSpec:
    """The latents of the pipeline's autoencoder; without one, pixels."""
    if inner is not None:
        return inner
    return PixelLatents(channels=UNet2DConfig.from_dict(config).in_channels)
