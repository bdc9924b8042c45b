"""The config and the description of ``T2IAdapter``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig
from perfuse.models.shapes import floating

__all__ = ["T2IAdapterConfig", "describe"]


@dataclass(frozen=True, kw_only=True)
class T2IAdapterConfig(ModelConfig):
    """The widths of the levels, and the kind of block at each."""

    class_name: ClassVar[str] = "T2IAdapter"

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = "full_adapter"

    def __post_init__(self) -> None:
        self.check_choice("adapter_type", ("full_adapter", "full_adapter_xl", "light_adapter"))

    @property
    def levels(self) -> tuple[tuple[int, int, bool], ...]:
        """Channels in and out of each level, and whether it halves its input first."""
        last = len(self.channels) - 1
        if self.adapter_type == "full_adapter_xl":  # it halves once alone
            steps = (1, 2)  # the levels that change the width
            inputs = [
                self.channels[i - 1] if i in steps else w for i, w in enumerate(self.channels)
            ]
            return tuple((a, b, i == 2) for i, (a, b) in enumerate(_pairs(inputs, self.channels)))
        widths = self.channels
        first = widths[0]
        if self.adapter_type == "light_adapter":
            first, widths = self.unshuffled, (*widths, widths[last])
        inputs = [first, *widths[:-1]]
        return tuple((a, b, i > 0) for i, (a, b) in enumerate(_pairs(inputs, widths)))

    @property
    def unshuffled(self) -> int:
        """Channels of the picture once its pixels are channels."""
        return self.in_channels * self.downscale_factor**2

    @property
    def total_downscale_factor(self) -> int:
        """Pixels for each position of the last level."""
        halvings = sum(halves for *_, halves in self.levels)
        return self.downscale_factor << halvings


def _pairs(inputs: Any, outputs: Any) -> Any:
    return zip(inputs, outputs, strict=True)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """A T2I-Adapter: a picture in, features for the blocks of a denoiser's first half out."""
    adapter = T2IAdapterConfig.from_dict(config)
    return (
        ComponentSpec(
            name=name,
            role=Role.CONTROL,
            class_name=adapter.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    floating("control_image", "batch", adapter.in_channels, "height", "width"),
                ),
                outputs=tuple(_outputs(adapter)),
            ),
            dims={
                "batch": Dim(example=2),
                "height": Dim(example=48, smallest=32, multiple=adapter.downscale_factor),
                "width": Dim(example=32, smallest=16, multiple=adapter.downscale_factor),
            },
        ),
    )


def _outputs(adapter: T2IAdapterConfig) -> list[TensorSpec]:
    outputs, pixels = [], adapter.downscale_factor
    for i, (_, width, halves) in enumerate(adapter.levels):
        pixels *= 2 if halves else 1
        sizes = (f"height/{pixels}", f"width/{pixels}")
        outputs.append(floating(f"adapter_feature_{i}", "batch", width, *sizes))
    return outputs
