"""The autoencoder whose decoder sees what inpainting keeps (Zhu et al. 2023, arXiv:2306.04632)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.models.autoencoder_halves import Switches
from perfuse.models.autoencoder_kl.distribution import DiagonalGaussian
from perfuse.models.autoencoder_kl.network import (
    EPS,
    DecoderBlock,
    DecoderOutput,
    Encoder,
    EncoderOutput,
    VaeEncoder,
    mid_block,
    resnets,
)
from perfuse.models.autoencoder_kl_asymmetric.description import AsymmetricConfig
from perfuse.models.building import load_native, native
from perfuse.models.embeddings import activation
from perfuse.models.model import Model
from perfuse.sources.weights import Weights


class ConditionEncoder(nn.Module):
    """A masked picture [B, C, H, W] to features: two at its size, three each half as large."""

    def __init__(self, config: AsymmetricConfig) -> None:
        super().__init__()
        layers, inputs = [], config.out_channels
        for i, width in enumerate(config.condition_channels):
            if i < 2:
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
            else:
                layers.append(nn.Conv2d(inputs, width, 4, stride=2, padding=1))
            inputs = width
        self.layers = nn.Sequential(*layers)

    def forward(self, picture: Tensor, count: int) -> list[Tensor]:
        """The features of the first ``count`` convolutions."""
        features, hidden = [], picture
        for layer in list(self.layers)[:count]:
            features.append(layer(hidden))
            hidden = torch.relu(features[-1])
        return features


class Decoder(nn.Module):
    """Latents [B, L, h, w] to a picture; where the mask is 0, features of the picture that is kept."""

    def __init__(self, config: AsymmetricConfig) -> None:
        super().__init__()
        half = config.decoder
        widths = half.block_out_channels[::-1]
        self.levels = [config.condition_levels[level] for level in config.joined]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()
        self.mid_block = mid_block(half)
        for i, width in enumerate(widths):
            self.up_blocks.append(
                DecoderBlock(
                    widths[max(i - 1, 0)],
                    width,
                    layers=half.layers_per_block + 1,
                    resnets=resnets(half),
                    upsample=i < len(widths) - 1,
                )
            )
        self.condition_encoder = ConditionEncoder(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=EPS)
        self.conv_act = activation("silu")
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(
        self, latents: Tensor, image: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        features: list[Tensor] = []
        if image is not None and mask is not None:
            features = self.condition_encoder((1 - mask) * image, max(self.levels) + 1)
        sample = self.mid_block(self.conv_in(latents))
        for block, level in zip(self.up_blocks, self.levels, strict=False):
            sample = block(_joined(sample, features, level, mask))
        sample = _joined(sample, features, self.levels[-1], mask)
        output: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        return output


def _joined(sample: Tensor, features: list[Tensor], level: int, mask: Tensor | None) -> Tensor:
    """The sample where the mask is 1, and the features of a level where it is 0."""
    if mask is None or not features:
        return sample
    drawn = F.interpolate(mask, size=sample.shape[-2:], mode="nearest")
    return sample * drawn + features[level] * (1 - drawn)


class AsymmetricAutoencoderKL(Switches, Model):
    """Encodes pictures to latent moments, decodes latents beside what is kept of a picture."""

    config_class: ClassVar[type[AsymmetricConfig]] = AsymmetricConfig
    config: AsymmetricConfig

    def build(self) -> None:
        latents = self.config.latent_channels
        self.encoder = Encoder(self.config.encoder)
        self.decoder = Decoder(self.config)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)

    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> EncoderOutput | tuple[DiagonalGaussian]:
        """[B, C, H, W] in [-1, 1] to the distribution of unscaled latents, to sample from."""
        latents = DiagonalGaussian(self.quant_conv(self.encoder(x)))
        return EncoderOutput(latents) if return_dict else (latents,)

    def decode(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> DecoderOutput | tuple[Tensor]:
        """[B, L, h, w], already divided by the scaling factor, to [B, C, H, W].

        Args:
            z: The latents.
            generator: Of no use: nothing is drawn.
            image: A picture [B, C, H, W] in [-1, 1], of which a part is kept.
            mask: [B, 1, H, W]: 0 where it is kept, 1 where it is drawn.
            return_dict: ``False`` for a one-element tuple.
        """
        sample = self.decoder(self.post_quant_conv(z), image, mask)
        return DecoderOutput(sample) if return_dict else (sample,)


class MaskedVaeDecoder(nn.Module):
    """``latent_sample, image, mask -> (sample,)``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv
        self.whole = lambda: model  # not a submodule: the other half is not captured or copied

    def forward(self, latent_sample: Tensor, image: Tensor, mask: Tensor) -> tuple[Tensor]:
        return (self.decoder(self.post_quant_conv(latent_sample), image, mask),)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of one half of a checkpoint's autoencoder."""
    return wrap(spec, load_native(AsymmetricAutoencoderKL, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one half of an autoencoder of perfuse or Diffusers."""
    whole = native(AsymmetricAutoencoderKL, spec, model)
    return VaeEncoder(whole) if spec.role == Role.LATENT_ENCODER else MaskedVaeDecoder(whole)
