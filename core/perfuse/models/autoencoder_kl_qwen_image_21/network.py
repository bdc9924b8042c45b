"""Qwen-Image 2.1's autoencoder (Wan 2.2's, on one frame; shortcuts as in arXiv:2410.10733).

Where height and width are halved or doubled, so is time at some levels, of which one frame has the last
slice: a shortcut that folds time into channels has zeros for the slice before it.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.autoencoder_kl_qwen_image_21.description import AutoencoderKLQwenImage21Config
from perfuse.models.building import converted, load_native
from perfuse.models.frame_blocks import (
    ChannelNorm,
    Doubling,
    FrameAutoencoder,
    Halving,
    Middle,
    ResidualBlock,
    half,
    without_time,
)
from perfuse.sources.weights import Weights

__all__ = ["AutoencoderKLQwenImage21", "build", "wrap"]


def convolution(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class Folded(nn.Module):
    """Pixels, and time where it is halved, folded into channels, whose groups are averaged."""

    def __init__(self, outputs: int, *, times: int, sides: int) -> None:
        super().__init__()
        self.outputs, self.times, self.sides = outputs, times, sides

    def forward(self, hidden: Tensor) -> Tensor:
        pixels = F.pixel_unshuffle(hidden, self.sides).unflatten(1, (hidden.shape[1], -1))  # type: ignore[no-untyped-call]
        if self.times == 2:  # [B, C, times * sides * sides, H, W]: Core ML has five axes at most
            pixels = torch.cat([torch.zeros_like(pixels), pixels], dim=2)
        grouped: Tensor = pixels.flatten(1, 2).unflatten(1, (self.outputs, -1))
        return grouped.mean(dim=2)


class Unfolded(nn.Module):
    """Channels, each as often as needed, unfolded into pixels, and into time where it is doubled."""

    def __init__(self, inputs: int, outputs: int, *, times: int) -> None:
        super().__init__()
        self.outputs, self.times = outputs, times
        self.repeats = outputs * times * 4 // inputs

    def forward(self, hidden: Tensor) -> Tensor:
        repeated = hidden[:, :, None].expand(-1, -1, self.repeats, -1, -1).flatten(1, 2)
        slices: Tensor = repeated.unflatten(1, (self.outputs, self.times * 4))  # type: ignore[no-untyped-call]
        return F.pixel_shuffle(slices[:, :, -4:].flatten(1, 2), 2)


class DownBlock(nn.Module):
    """Residual blocks, then half the size, except at the end; and a shortcut around both."""

    def __init__(self, inputs: int, outputs: int, *, blocks: int, halves: bool, time: bool) -> None:
        super().__init__()
        sides, times = (2 if halves else 1), (2 if time else 1)
        self.avg_shortcut = Folded(outputs, times=times, sides=sides)
        self.resnets = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else outputs, outputs, conv=convolution)
            for i in range(blocks)
        )
        self.downsampler: nn.Module = Halving(outputs) if halves else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        inner = hidden
        for block in self.resnets:
            inner = block(inner)
        output: Tensor = self.downsampler(inner) + self.avg_shortcut(hidden)
        return output


class UpBlock(nn.Module):
    """Residual blocks, then twice the size and a shortcut around both, except at the end."""

    def __init__(
        self, inputs: int, outputs: int, *, blocks: int, doubles: bool, time: bool
    ) -> None:
        super().__init__()
        self.avg_shortcut: nn.Module | None = None
        self.upsampler: nn.Module = nn.Identity()
        self.resnets = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else outputs, outputs, conv=convolution)
            for i in range(blocks)
        )
        if doubles:
            self.avg_shortcut = Unfolded(inputs, outputs, times=2 if time else 1)
            self.upsampler = Doubling(outputs, outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = hidden
        for block in self.resnets:
            inner = block(inner)
        output: Tensor = self.upsampler(inner)
        return output if self.avg_shortcut is None else output + self.avg_shortcut(hidden)


class Encoder(nn.Module):
    """[B, C, H, W] in [-1, 1] to the means and log-variances of latents, [B, 2L, H/f, W/f]."""

    def __init__(self, config: AutoencoderKLQwenImage21Config) -> None:
        super().__init__()
        widths, times = config.encoder_widths, (*config.temperal_downsample, False)
        last = len(config.dim_mult) - 1
        self.conv_in = convolution(config.in_channels, widths[0], 3)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                *widths[i : i + 2], blocks=config.num_res_blocks, halves=i < last, time=times[i]
            )
            for i in range(last + 1)
        )
        self.mid_block = Middle(widths[-1], conv=convolution)
        self.norm_out = ChannelNorm(widths[-1], axes=3)
        self.conv_out = convolution(widths[-1], 2 * config.z_dim, 3)

    def forward(self, sample: Tensor) -> Tensor:
        hidden = self.conv_in(sample)
        for block in self.down_blocks:
            hidden = block(hidden)
        output: Tensor = self.conv_out(F.silu(self.norm_out(self.mid_block(hidden))))
        return output


class Decoder(nn.Module):
    """Latents [B, L, h, w] to a picture [B, C, h·f, w·f] in about [-1, 1]."""

    def __init__(self, config: AutoencoderKLQwenImage21Config) -> None:
        super().__init__()
        widths, times = config.decoder_widths, (*config.temperal_downsample[::-1], False)
        last = len(config.dim_mult) - 1
        self.conv_in = convolution(config.z_dim, widths[0], 3)
        self.mid_block = Middle(widths[0], conv=convolution)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                *widths[i : i + 2],
                blocks=config.num_res_blocks + 1,
                doubles=i < last,
                time=times[i],
            )
            for i in range(last + 1)
        )
        self.norm_out = ChannelNorm(widths[-1], axes=3)
        self.conv_out = convolution(widths[-1], config.out_channels, 3)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            hidden = block(hidden)
        output: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return output


class AutoencoderKLQwenImage21(FrameAutoencoder):
    """Encodes pictures to latent moments, decodes latents to pictures."""

    config_class: ClassVar[type[AutoencoderKLQwenImage21Config]] = AutoencoderKLQwenImage21Config
    config: AutoencoderKLQwenImage21Config

    def build(self) -> None:
        channels = self.config.z_dim
        self.encoder = Encoder(self.config)
        self.quant_conv = convolution(2 * channels, 2 * channels, 1)
        self.post_quant_conv = convolution(channels, channels, 1)
        self.decoder = Decoder(self.config)

    rename = staticmethod(without_time)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of one half of a checkpoint's autoencoder."""
    return half(spec, load_native(AutoencoderKLQwenImage21, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one half of an autoencoder of perfuse or Diffusers."""
    return half(spec, converted(AutoencoderKLQwenImage21, spec, model))
