"""T2I-Adapter (Mou et al. 2023, arXiv:2302.08453)."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.building import load_native, native
from perfuse.models.model import Model
from perfuse.models.t2i_adapter.description import T2IAdapterConfig
from perfuse.sources.weights import Weights

__all__ = ["T2IAdapter", "build", "wrap"]


class Resnet(nn.Module):
    """Two convolutions, and what went into them."""

    def __init__(self, channels: int, *, kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, states: Tensor) -> Tensor:
        change: Tensor = self.block2(F.relu(self.block1(states)))
        return states + change


class Level(nn.Module):
    """Residual blocks at one resolution, half of that before if the level halves."""

    def __init__(
        self, inputs: int, width: int, blocks: int, *, halves: bool, kernel: int, enters: bool
    ) -> None:
        super().__init__()
        self.downsample = nn.AvgPool2d(2, stride=2, ceil_mode=True) if halves else None
        self.in_conv = nn.Conv2d(inputs, width, 1) if enters else None
        self.resnets = nn.Sequential(*(Resnet(width, kernel=kernel) for _ in range(blocks)))

    def forward(self, states: Tensor) -> Tensor:
        if self.downsample is not None:
            states = self.downsample(states)
        if self.in_conv is not None:
            states = self.in_conv(states)
        output: Tensor = self.resnets(states)
        return output


def _full(inputs: int, outputs: int, blocks: int, *, halves: bool) -> Level:
    return Level(inputs, outputs, blocks, halves=halves, kernel=1, enters=inputs != outputs)


class LightLevel(Level):
    """A level whose residual blocks have a quarter of its channels."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, halves: bool) -> None:
        super().__init__(inputs, outputs // 4, blocks, halves=halves, kernel=3, enters=True)
        self.out_conv = nn.Conv2d(outputs // 4, outputs, 1)

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.out_conv(super().forward(states))
        return output


class Levels(nn.Module):
    """The levels one after another; returns the states of each."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(config.downscale_factor)
        light = config.adapter_type == "light_adapter"
        self.conv_in = (
            None if light else nn.Conv2d(config.unshuffled, config.channels[0], 3, padding=1)
        )
        make: Callable[..., Level] = LightLevel if light else _full
        self.body = nn.ModuleList(
            make(inputs, outputs, config.num_res_blocks, halves=halves)
            for inputs, outputs, halves in config.levels
        )

    def forward(self, picture: Tensor) -> list[Tensor]:
        states = self.unshuffle(picture)
        if self.conv_in is not None:
            states = self.conv_in(states)
        features = []
        for level in self.body:
            states = level(states)
            features.append(states)
        return features


class T2IAdapter(Model):
    """Features [B, C, h, w] of a picture [B, 3, H, W] in [0, 1], for the blocks of a UNet."""

    config_class: ClassVar[type[T2IAdapterConfig]] = T2IAdapterConfig
    config: T2IAdapterConfig

    def build(self) -> None:
        self.adapter = Levels(self.config)

    @property
    def downscale_factor(self) -> int:
        return self.config.downscale_factor

    @property
    def total_downscale_factor(self) -> int:
        return self.config.total_downscale_factor

    def forward(self, x: Tensor) -> list[Tensor]:
        output: list[Tensor] = self.adapter(x)
        return output


class Adapter(nn.Module):
    """``control_image -> features``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(picture))


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return wrap(spec, load_native(T2IAdapter, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of an adapter of perfuse or Diffusers."""
    return Adapter(native(T2IAdapter, spec, model))
