"""The config and the description of ``ControlNetModel``, without torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.shapes import floating
from perfuse.models.unet_2d_condition.description import (
    UNet2DConditionConfig,
    conditions,
    residuals,
    with_ids,
)

__all__ = ["ControlNetConfig", "describe", "fit"]


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig(UNet2DConditionConfig):
    """The first half of a UNet, with the settings of the picture that it reads."""

    class_name: ClassVar[str] = "ControlNetModel"
    #: What a UNet's config has and a ControlNet's does not.
    absent: ClassVar[frozenset[str]] = frozenset(
        {
            "sample_size",
            "out_channels",
            "center_input_sample",
            "up_block_types",
            "dropout",
            "reverse_transformer_layers_per_block",
            "dual_cross_attention",
            "resnet_skip_time_act",
            "resnet_out_scale_factor",
            "time_embedding_type",
            "time_embedding_dim",
            "time_embedding_act_fn",
            "timestep_post_act",
            "time_cond_proj_dim",
            "conv_in_kernel",
            "conv_out_kernel",
            "attention_type",
            "class_embeddings_concat",
            "mid_block_only_cross_attention",
            "cross_attention_norm",
        }
    )

    conditioning_channels: int = 3
    controlnet_conditioning_channel_order: str = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256)
    global_pool_conditions: bool = False

    def __post_init__(self) -> None:
        # There is no second half; the UNet's checks are for as many blocks as there are.
        object.__setattr__(self, "up_block_types", ("UpBlock2D",) * len(self.block_out_channels))
        super().__post_init__()
        for kind in self.down_block_types:
            if kind == "ResnetDownsampleBlock2D":
                raise self.error(
                    f"down_block_types has {kind!r}", "CrossAttnDownBlock2D and DownBlock2D"
                )
        self.check_choice("controlnet_conditioning_channel_order", ("rgb", "bgr"))
        self.check_choice("encoder_hid_dim_type", (None,))  # Diffusers makes it and never uses it
        self.check_choice("addition_embed_type", (None, "text", "text_time"))
        self.check_choice("class_embed_type", (None, "timestep", "identity", "projection"))

    @property
    def embedding_channels(self) -> tuple[int, ...]:
        """The widths of the layers that read the picture; each after the first halves it."""
        return self.conditioning_embedding_out_channels or (16, 32, 96, 256)

    def to_dict(self) -> dict[str, Any]:
        return {name: v for name, v in super().to_dict().items() if name not in self.absent}


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """A ControlNet: the denoiser's inputs and a picture in, residuals for the denoiser out."""
    net = ControlNetConfig.from_dict(config)
    picture = floating("control_image", "batch", net.conditioning_channels, "height", "width")
    return (described(name, folder, net, config, (picture,)),)


def fit(spec: ComponentSpec, others: Mapping[str, ComponentSpec]) -> ComponentSpec:
    """Choose the number of time ids as the denoiser does."""
    return with_ids(spec, ControlNetConfig.from_dict(spec.config), others)


def described(
    name: str,
    folder: str,
    net: ControlNetConfig,
    config: Mapping[str, Any],
    pictures: tuple[TensorSpec, ...],
) -> ComponentSpec:
    """The description of a class of ControlNet that takes these inputs besides the denoiser's."""
    outputs = residuals(net)
    if net.global_pool_conditions:
        outputs = tuple(dataclasses.replace(one, shape=(*one.shape[:2], 1, 1)) for one in outputs)
    pixels = 2 ** (len(net.embedding_channels) - 1)  # per latent
    return ComponentSpec(
        name=name,
        role=Role.CONTROL,
        class_name=net.class_name,
        folder=folder,
        config=config,
        signature=Signature(
            inputs=(
                *conditions(net),
                *pictures,
                # Times the residuals, in their order: so one graph serves all scales and modes.
                TensorSpec(name="residual_scales", dtype="float32", shape=("batch", len(outputs))),
            ),
            outputs=outputs,
        ),
        dims={
            "batch": Dim(example=2),
            "latent_height": Dim(example=96, smallest=64),
            "latent_width": Dim(example=64, smallest=64),
            "height": Dim(example=96, smallest=64, multiple=pixels),
            "width": Dim(example=64, smallest=64, multiple=pixels),
            "sequence": Dim(example=7, smallest=2),
        },
    )
