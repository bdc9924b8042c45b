"""Blocks of autoencoders of videos, on one frame [B, C, H, W] (Wan 2025, arXiv:2503.20314).

Layers that halve or double time do nothing to a first frame.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.errors import InputError
from perfuse.models.autoencoder_kl.network import DecoderOutput, Distributing

__all__ = [
    "ChannelNorm",
    "Convolution",
    "Doubling",
    "FrameAutoencoder",
    "Halving",
    "Middle",
    "PixelAttention",
    "ResidualBlock",
    "half",
    "without_time",
]

#: Makes a convolution of so many channels to so many, with a kernel of this side, that keeps the size.
Convolution = Callable[[int, int, int], nn.Module]


def without_time(name: str) -> str | None:
    """The name of a stored tensor; none of layers that halve or double time."""
    return None if ".time_conv." in name else name


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

    def __init__(self, inputs: int, outputs: int, *, conv: Convolution) -> None:
        super().__init__()
        self.norm1, self.conv1 = ChannelNorm(inputs, axes=3), conv(inputs, outputs, 3)
        self.norm2, self.conv2 = ChannelNorm(outputs, axes=3), conv(outputs, outputs, 3)
        self.conv_shortcut: nn.Module = (
            conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
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

    def __init__(self, channels: int, *, conv: Convolution) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([PixelAttention(channels)])
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, conv=conv) for _ in range(2))

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
    """Twice the height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        wider = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.resample = nn.Sequential(wider, nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.resample(hidden)
        return output


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


class FrameAutoencoder(Distributing):
    """One of these autoencoders, called as Diffusers' are: with videos of one frame."""

    def encode_moments(self, sample: Tensor) -> Tensor:
        """[B, C, 1, H, W] to means and log-variances [B, 2L, 1, h, w]."""
        return super().encode_moments(_frame(sample))[:, :, None]

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """[B, L, 1, h, w] to [B, C, 1, H, W] in [-1, 1]. ``generator`` is of no use."""
        sample: Tensor = self.decoder(self.post_quant_conv(_frame(z)))
        video = sample[:, :, None].clamp(-1.0, 1.0)
        return DecoderOutput(video) if return_dict else (video,)


def _frame(video: Tensor) -> Tensor:
    """The only frame of a video.

    Raises:
        InputError: it has several, or is none.
    """
    if video.ndim != 5 or video.shape[2] != 1:
        raise InputError(
            f"A video [B, C, 1, H, W] of one frame was expected; got {tuple(video.shape)}."
        )
    return video[:, :, 0]


def half(spec: ComponentSpec, whole: nn.Module) -> nn.Module:
    """The flat module of one half of an autoencoder."""
    return VaeEncoder(whole) if spec.role == Role.LATENT_ENCODER else VaeDecoder(whole)
