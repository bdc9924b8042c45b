"""The autoencoder between pictures and latents (Rombach et al. 2022, arXiv:2112.10752)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.models.attention import SpatialAttention
from perfuse.models.autoencoder_halves import Switches
from perfuse.models.autoencoder_kl.description import AutoencoderKLConfig
from perfuse.models.autoencoder_kl.distribution import DiagonalGaussian
from perfuse.models.building import load_native, native
from perfuse.models.embeddings import activation
from perfuse.models.model import Model
from perfuse.models.outputs import ModelOutput
from perfuse.models.unet_blocks import DownBlock, MidBlock, Resnets, conv_down, conv_up
from perfuse.sources.weights import Weights

EPS = 1e-6  # of every normalisation in the autoencoder, whatever the UNet has


def resnets(config: AutoencoderKLConfig) -> Resnets:
    return Resnets(time_channels=None, groups=config.norm_num_groups, eps=EPS, act_fn=config.act_fn)


def mid_block(config: AutoencoderKLConfig) -> MidBlock:
    channels = config.block_out_channels[-1]

    def attention(_: int) -> nn.Module:
        return SpatialAttention(channels, head_dim=channels, groups=config.norm_num_groups, eps=EPS)

    return MidBlock(
        channels,
        resnet=resnets(config).make,
        attention=attention if config.mid_block_add_attention else None,
    )


class Encoder(nn.Module):
    """[B, C, H, W] in [-1, 1] to the means and log-variances of latents, [B, 2L, H/f, W/f]."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            self.down_blocks.append(
                DownBlock(
                    widths[max(i - 1, 0)],
                    width,
                    layers=config.layers_per_block,
                    resnet=resnets(config).make,
                    downsample=None if last else conv_down(width, 0),
                )
            )
        self.mid_block = mid_block(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=EPS)
        self.conv_act = activation("silu")
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, sample: Tensor) -> Tensor:
        sample = self.conv_in(sample)
        for block in self.down_blocks:
            sample, _ = block(sample)
        sample = self.conv_act(self.conv_norm_out(self.mid_block(sample)))
        output: Tensor = self.conv_out(sample)
        return output


class Decoder(nn.Module):
    """Latents [B, L, h, w] to a picture [B, C, h·f, w·f] in about [-1, 1]."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()
        self.mid_block = mid_block(config)
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            self.up_blocks.append(
                DecoderBlock(
                    widths[max(i - 1, 0)],
                    width,
                    layers=config.layers_per_block + 1,
                    resnets=resnets(config),
                    upsample=not last,
                )
            )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=EPS)
        self.conv_act = activation("silu")
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        sample = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            sample = block(sample)
        output: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        return output


class DecoderBlock(nn.Module):
    """Residual blocks, then upsampling; no skip connections."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, resnets: Resnets, upsample: bool
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(resnets.make(channels, out_channels) for channels in inputs)
        self.upsamplers = nn.ModuleList([conv_up(out_channels)()]) if upsample else None

    def forward(self, hidden: Tensor) -> Tensor:
        for resnet in self.resnets:
            hidden = resnet(hidden)
        if self.upsamplers is not None:
            hidden = self.upsamplers[0](hidden)
        return hidden


@dataclass(frozen=True)
class DecoderOutput(ModelOutput):
    """A decoded picture."""

    sample: Tensor


@dataclass(frozen=True)
class EncoderOutput(ModelOutput):
    """An encoded picture: the distribution of its latents."""

    latent_dist: DiagonalGaussian


class Distributing(Switches, Model):
    """An autoencoder that encodes to a distribution of latents, called as Diffusers' are."""

    encoder: nn.Module
    quant_conv: nn.Module
    decoder: nn.Module
    post_quant_conv: nn.Module

    def encode_moments(self, sample: Tensor) -> Tensor:
        """[B, C, H, W] to means and log-variances [B, 2L, h, w]; the host samples from them."""
        output: Tensor = self.quant_conv(self.encoder(sample))
        return output

    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> EncoderOutput | tuple[DiagonalGaussian]:
        """[B, C, H, W] in [-1, 1] to the distribution of unscaled latents, to sample from."""
        latents = DiagonalGaussian(self.encode_moments(x))
        return EncoderOutput(latents) if return_dict else (latents,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """[B, L, h, w], already divided by the scaling factor, to [B, C, H, W].

        ``generator`` is of no use: nothing is drawn.
        """
        sample = self.decoder(self.post_quant_conv(z))
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode, to the mean or to a sample, and decode again."""
        latents = DiagonalGaussian(self.encode_moments(sample))
        drawn = latents.sample(generator) if sample_posterior else latents.mode()
        return self.decode(drawn, return_dict)


class AutoencoderKL(Distributing):
    """Encodes pictures to latent moments, decodes latents to pictures. Latents are unscaled."""

    config_class: ClassVar[type[AutoencoderKLConfig]] = AutoencoderKLConfig
    config: AutoencoderKLConfig

    def build(self) -> None:
        config, latents = self.config, self.config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = (
            nn.Conv2d(2 * latents, 2 * latents, 1) if config.use_quant_conv else nn.Identity()
        )
        self.post_quant_conv = (
            nn.Conv2d(latents, latents, 1) if config.use_post_quant_conv else nn.Identity()
        )


class VaeEncoder(nn.Module):
    """``sample -> (latent_parameters,)``: means and log-variances."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, _or_identity(model.quant_conv)
        self.whole = lambda: model  # not a submodule: the other half is not captured or copied

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        return (self.quant_conv(self.encoder(sample)),)


class VaeDecoder(nn.Module):
    """``latent_sample -> (sample,)``: an unscaled latent to a picture in about [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, _or_identity(model.post_quant_conv)
        self.whole = lambda: model

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return (self.decoder(self.post_quant_conv(latent_sample)),)


def _or_identity(layer: Any) -> Any:
    """Diffusers' autoencoder has ``None`` where it has no such layer."""
    return nn.Identity() if layer is None else layer


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of one half of a checkpoint's autoencoder."""
    return wrap(spec, load_native(AutoencoderKL, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one half of an autoencoder of perfuse or Diffusers."""
    whole = native(AutoencoderKL, spec, model)
    return VaeEncoder(whole) if spec.role == Role.LATENT_ENCODER else VaeDecoder(whole)
