"""The config and the description of ``ControlNetUnionModel``, without torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim, TensorSpec
from perfuse.models.controlnet.description import ControlNetConfig, described
from perfuse.models.shapes import floating
from perfuse.models.unet_2d_condition.description import with_ids

__all__ = ["ControlNetUnionConfig", "describe", "fit"]


@dataclass(frozen=True, kw_only=True)
class ControlNetUnionConfig(ControlNetConfig):
    """A ControlNet with the kinds of pictures that it knows, and the sizes of what joins them."""

    class_name: ClassVar[str] = "ControlNetUnionModel"
    absent: ClassVar[frozenset[str]] = ControlNetConfig.absent | {"mid_block_type"}

    conditioning_embedding_out_channels: tuple[int, ...] | None = (48, 96, 192, 384)
    num_control_type: int = 6
    num_trans_channel: int = 320
    num_trans_head: int = 8
    num_trans_layer: int = 1
    num_proj_channel: int = 320

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("controlnet_conditioning_channel_order", ("rgb",))
        width = self.block_out_channels[0]
        for name in ("num_trans_channel", "num_proj_channel"):  # they are added to the states
            if getattr(self, name) != width:
                raise self.error(
                    f"{name} is {getattr(self, name)} and block_out_channels begins with {width}",
                    "the same number",
                )
        if self.addition_time_embed_dim is None:
            raise self.error("addition_time_embed_dim is missing", "it: kinds are embedded by it")


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """A ControlNet that reads several pictures at once, each with its kind and its scale."""
    net = ControlNetUnionConfig.from_dict(config)
    channels, kinds = net.conditioning_channels, net.num_control_type
    pictures = (
        floating("control_image", "batch", "conditions", channels, "height", "width"),
        # 1 for each kind that is among the pictures.
        floating("control_kinds", "batch", kinds),
        # For each picture a row with a one at its kind.
        floating("control_modes", "batch", "conditions", kinds),
        TensorSpec(name="control_scales", dtype="float32", shape=("batch", "conditions")),
    )
    spec = described(name, folder, net, config, pictures)
    return (dataclasses.replace(spec, dims={**spec.dims, "conditions": Dim(example=3)}),)


def fit(spec: ComponentSpec, others: Mapping[str, ComponentSpec]) -> ComponentSpec:
    """Choose the number of time ids as the denoiser does."""
    return with_ids(spec, ControlNetUnionConfig.from_dict(spec.config), others)
