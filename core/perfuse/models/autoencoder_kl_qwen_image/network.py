"""Qwen-Image's autoencoder, reduced to what one frame needs (Wan 2025, arXiv:2503.20314).

Its convolutions see a frame and those before it. A first frame has none: of a kernel only the last
slice in time counts, and layers that halve or double time do nothing.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.autoencoder_kl_qwen_image.description import AutoencoderKLQwenImageConfig
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

__all__ = ["AutoencoderKLQwenImage", "build", "wrap"]


class CausalConv(nn.Module):
    """A convolution in space and time [O, I, T, H, W], on one frame [B, I, h, w]."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size, size))
        self.bias = nn.Parameter(torch.empty(outputs))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.zeros_(self.bias)
        self.padding = size // 2

    def forward(self, hidden: Tensor) -> Tensor:
        last = self.weight[:, :, -1]
        output: Tensor = F.conv2d(hidden, last, self.bias, padding=self.padding)
        return output


class Encoder(nn.Module):
    """[B, C, H, W] in [-1, 1] to the means and log-variances of latents, [B, 2L, H/f, W/f]."""

    def __init__(self, config: AutoencoderKLQwenImageConfig) -> None:
        super().__init__()
        widths = [config.base_dim * times for times in (1, *config.dim_mult)]
        self.conv_in = CausalConv(config.input_channels, widths[0], 3)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths[1:]):
            for i in range(config.num_res_blocks):
                before = widths[level] if i == 0 else width
                self.down_blocks.append(ResidualBlock(before, width, conv=CausalConv))
            if level < len(config.dim_mult) - 1:
                self.down_blocks.append(Halving(width))
        self.mid_block = Middle(widths[-1], conv=CausalConv)
        self.norm_out = ChannelNorm(widths[-1], axes=3)
        self.conv_out = CausalConv(widths[-1], 2 * config.z_dim, 3)

    def forward(self, sample: Tensor) -> Tensor:
        hidden = self.conv_in(sample)
        for block in self.down_blocks:
            hidden = block(hidden)
        output: Tensor = self.conv_out(F.silu(self.norm_out(self.mid_block(hidden))))
        return output


class UpBlock(nn.Module):
    """Residual blocks, then twice the size, except at the end."""

    def __init__(self, inputs: int, outputs: int, *, blocks: int, doubles: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else outputs, outputs, conv=CausalConv)
            for i in range(blocks)
        )
        self.upsamplers = nn.ModuleList([Doubling(outputs, outputs // 2)] if doubles else [])

    def forward(self, hidden: Tensor) -> Tensor:
        for block in (*self.resnets, *self.upsamplers):
            hidden = block(hidden)
        return hidden


class Decoder(nn.Module):
    """Latents [B, L, h, w] to a picture [B, C, h·f, w·f] in about [-1, 1]."""

    def __init__(self, config: AutoencoderKLQwenImageConfig) -> None:
        super().__init__()
        last = len(config.dim_mult) - 1
        widths = [config.base_dim * times for times in config.dim_mult[::-1]]
        self.conv_in = CausalConv(config.z_dim, widths[0], 3)
        self.mid_block = Middle(widths[0], conv=CausalConv)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                widths[level - 1] // 2 if level else widths[0],
                width,
                blocks=config.num_res_blocks + 1,
                doubles=level < last,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = ChannelNorm(widths[-1], axes=3)
        self.conv_out = CausalConv(widths[-1], config.input_channels, 3)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            hidden = block(hidden)
        output: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return output


class AutoencoderKLQwenImage(FrameAutoencoder):
    """Encodes pictures to latent moments, decodes latents to pictures."""

    config_class: ClassVar[type[AutoencoderKLQwenImageConfig]] = AutoencoderKLQwenImageConfig
    config: AutoencoderKLQwenImageConfig

    def build(self) -> None:
        channels = self.config.z_dim
        self.encoder = Encoder(self.config)
        self.quant_conv = CausalConv(2 * channels, 2 * channels, 1)
        self.post_quant_conv = CausalConv(channels, channels, 1)
        self.decoder = Decoder(self.config)

    rename = staticmethod(without_time)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of one half of a checkpoint's autoencoder."""
    return half(spec, load_native(AutoencoderKLQwenImage, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one half of an autoencoder of perfuse or Diffusers."""
    return half(spec, converted(AutoencoderKLQwenImage, spec, model))
