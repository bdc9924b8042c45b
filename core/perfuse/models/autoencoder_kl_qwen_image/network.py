"""Qwen-Image's autoencoder, reduced to what one frame needs (Wan 2025, arXiv:2503.20314).

Its convolutions see a frame and those before it. A first frame has none: of a kernel only the last
slice in time counts, and layers that halve or double time do nothing.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.models.autoencoder_halves import Switches
from perfuse.models.autoencoder_kl_qwen_image.description import AutoencoderKLQwenImageConfig
from perfuse.models.building import converted, load_native
from perfuse.models.model import Model
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


class ChannelNorm(nn.Module):
    """Each pixel's channels brought to the length that a weight says for all."""

    def __init__(self, channels: int, *, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * axes))
        self.scale = channels**0.5

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        length = wide.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        normal = (wide / length).to(hidden.dtype) * self.scale
        scaled: Tensor = normal * self.gamma.reshape(-1, 1, 1)
        return scaled


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm, added to the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = ChannelNorm(inputs, axes=3), CausalConv(inputs, outputs, 3)
        self.norm2, self.conv2 = ChannelNorm(outputs, axes=3), CausalConv(outputs, outputs, 3)
        self.conv_shortcut: nn.Module = (
            CausalConv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        )

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(hidden)))
        output: Tensor = self.conv2(F.silu(self.norm2(inner))) + self.conv_shortcut(hidden)
        return output


class PixelAttention(nn.Module):
    """Attention with one head over the pixels of [B, C, H, W], added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        joined = self.to_qkv(self.norm(hidden)).flatten(2).transpose(1, 2)[:, None]
        attended = F.scaled_dot_product_attention(*joined.chunk(3, dim=-1))
        output: Tensor = self.proj(attended[:, 0].transpose(1, 2).reshape(hidden.shape))
        return output + hidden


class Middle(nn.Module):
    """Residual blocks with attention between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([PixelAttention(channels)])
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](hidden)))
        return output


class Halving(nn.Module):
    """Half the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        pad, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        self.resample = nn.Sequential(pad, conv)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.resample(hidden)
        return output


class Doubling(nn.Module):
    """Twice the height and width, and half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wider = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.resample = nn.Sequential(wider, nn.Conv2d(channels, channels // 2, 3, padding=1))

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.resample(hidden)
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
                self.down_blocks.append(ResidualBlock(widths[level] if i == 0 else width, width))
            if level < len(config.dim_mult) - 1:
                self.down_blocks.append(Halving(width))
        self.mid_block = Middle(widths[-1])
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
            ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks)
        )
        self.upsamplers = nn.ModuleList([Doubling(outputs)] if doubles else [])

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
        self.mid_block = Middle(widths[0])
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


class AutoencoderKLQwenImage(Switches, Model):
    """Encodes pictures to latent moments, decodes latents to pictures."""

    config_class: ClassVar[type[AutoencoderKLQwenImageConfig]] = AutoencoderKLQwenImageConfig
    config: AutoencoderKLQwenImageConfig

    def build(self) -> None:
        channels = self.config.z_dim
        self.encoder = Encoder(self.config)
        self.quant_conv = CausalConv(2 * channels, 2 * channels, 1)
        self.post_quant_conv = CausalConv(channels, channels, 1)
        self.decoder = Decoder(self.config)

    @staticmethod
    def rename(name: str) -> str | None:
        """Layers that halve or double time have nothing to do with one frame."""
        return None if ".time_conv." in name else name


class VaeEncoder(nn.Module):
    """``sample -> (latent_parameters,)``: means and log-variances."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv
        self.whole = lambda: model  # not a submodule: the other half is not captured or copied

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        return (self.quant_conv(self.encoder(sample)),)


class VaeDecoder(nn.Module):
    """``latent_sample -> (sample,)``: an unscaled latent to a picture in about [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv
        self.whole = lambda: model

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return (self.decoder(self.post_quant_conv(latent_sample)),)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of one half of a checkpoint's autoencoder."""
    return _half(spec, load_native(AutoencoderKLQwenImage, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one half of an autoencoder of perfuse or Diffusers."""
    return _half(spec, converted(AutoencoderKLQwenImage, spec, model))


def _half(spec: ComponentSpec, whole: nn.Module) -> nn.Module:
    return VaeEncoder(whole) if spec.role == Role.LATENT_ENCODER else VaeDecoder(whole)
