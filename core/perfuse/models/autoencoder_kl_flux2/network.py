"""FLUX.2's autoencoder: Stable Diffusion's, with a batch norm over patches of its latents."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.models.autoencoder_kl.network import Decoder, Distributing, Encoder
from perfuse.models.autoencoder_kl_flux2.description import AutoencoderKLFlux2Config
from perfuse.models.building import load_native, native
from perfuse.sources.weights import Weights

__all__ = ["AutoencoderKLFlux2", "build", "wrap"]


class AutoencoderKLFlux2(Distributing):
    """Encodes pictures to normalised patches of latents, and decodes those to pictures."""

    config_class: ClassVar[type[AutoencoderKLFlux2Config]] = AutoencoderKLFlux2Config
    config: AutoencoderKLFlux2Config

    def build(self) -> None:
        config, channels = self.config, self.config.latent_channels
        wide: Any = config
        decoder = config.decoder_block_out_channels
        back: Any = config if decoder is None else replace(config, block_out_channels=decoder)
        self.encoder, self.decoder = Encoder(wide), Decoder(back)
        self.quant_conv = (
            nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else nn.Identity()
        )
        self.post_quant_conv = (
            nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else nn.Identity()
        )
        self.bn = nn.BatchNorm2d(config.patch_channels, eps=config.batch_norm_eps, affine=False)


class Statistics(nn.Module):
    """What a batch norm has seen, without its counter: graphs do not depend on that."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.eps: float = norm.eps

    def forward(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, [1, C, 1, 1]."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return mean[None, :, None, None], torch.sqrt(variance + self.eps)[None, :, None, None]


class VaeEncoder(nn.Module):
    """``sample -> (latent_parameters,)``: the means of the latents' patches, normalised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv
        self.bn = Statistics(model.bn)
        self.whole = lambda: model  # not a submodule: the other half is not captured or copied

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        means = self.quant_conv(self.encoder(sample)).chunk(2, dim=1)[0]
        mean, deviation = self.bn()
        return ((nn.functional.pixel_unshuffle(means, 2) - mean) / deviation,)


class VaeDecoder(nn.Module):
    """``latent_sample -> (sample,)``: normalised patches to a picture in about [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv
        self.bn = Statistics(model.bn)
        self.whole = lambda: model

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        mean, deviation = self.bn()
        latents = nn.functional.pixel_shuffle(latent_sample * deviation + mean, 2)
        return (self.decoder(self.post_quant_conv(latents)),)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of one half of a checkpoint's autoencoder."""
    return wrap(spec, load_native(AutoencoderKLFlux2, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one half of an autoencoder of perfuse or Diffusers."""
    whole = native(AutoencoderKLFlux2, spec, model)
    return VaeEncoder(whole) if spec.role == Role.LATENT_ENCODER else VaeDecoder(whole)
