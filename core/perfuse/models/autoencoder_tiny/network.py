"""The tiny autoencoder between pictures and latents (Bohan 2023, github.com/madebyollin/taesd)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.models.autoencoder_halves import Switches
from perfuse.models.autoencoder_kl.network import DecoderOutput
from perfuse.models.autoencoder_tiny.description import AutoencoderTinyConfig
from perfuse.models.building import load_native, native
from perfuse.models.embeddings import activation
from perfuse.models.model import Model
from perfuse.models.outputs import ModelOutput
from perfuse.sources.weights import Weights


class Block(nn.Module):
    """Three convolutions beside the identity, [B, C, H, W] to the same shape."""

    def __init__(self, width: int, act_fn: str) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            activation(act_fn),
            nn.Conv2d(width, width, 3, padding=1),
            activation(act_fn),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(self.conv(hidden) + hidden)


class Encoder(nn.Module):
    """[B, C, H, W] in [-1, 1] to latents [B, L, H/f, W/f]."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        stages = zip(config.encoder_block_out_channels, config.num_encoder_blocks, strict=True)
        for i, (width, blocks) in enumerate(stages):
            if i == 0:
                layers.append(nn.Conv2d(config.in_channels, width, 3, padding=1))
            else:
                layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
            layers += [Block(width, config.act_fn) for _ in range(blocks)]
        last = config.encoder_block_out_channels[-1]
        layers.append(nn.Conv2d(last, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, sample: Tensor) -> Tensor:
        output: Tensor = self.layers((sample + 1) / 2)
        return output


class Decoder(nn.Module):
    """Latents [B, L, h, w] to a picture [B, C, h·f, w·f] in about [-1, 1]."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        widths = config.decoder_block_out_channels
        layers: list[nn.Module] = [
            nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
            activation(config.act_fn),
        ]
        for i, (width, blocks) in enumerate(zip(widths, config.num_decoder_blocks, strict=True)):
            layers += [Block(width, config.act_fn) for _ in range(blocks)]
            if i < len(widths) - 1:
                layers.append(nn.Upsample(scale_factor=2, mode=config.upsample_fn))
                layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
            else:
                layers.append(nn.Conv2d(width, config.out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        output: Tensor = self.layers(torch.tanh(latents / 3) * 3)
        return output * 2 - 1


@dataclass(frozen=True)
class EncoderOutput(ModelOutput):
    """An encoded picture."""

    latents: Tensor


class AutoencoderTiny(Switches, Model):
    """Encodes pictures to latents, decodes latents to pictures."""

    config_class: ClassVar[type[AutoencoderTinyConfig]] = AutoencoderTinyConfig
    config: AutoencoderTinyConfig

    def build(self) -> None:
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Tensor]:
        """[B, C, H, W] in [-1, 1] to latents [B, L, h, w]."""
        latents: Tensor = self.encoder(x)
        return EncoderOutput(latents) if return_dict else (latents,)

    def decode(
        self, x: Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """[B, L, h, w] to [B, C, H, W]. ``generator`` is of no use: nothing is drawn."""
        sample = self.decoder(x)
        return DecoderOutput(sample) if return_dict else (sample,)


class TinyEncoder(nn.Module):
    """``sample -> (latent_parameters,)``: latents, not the moments of a distribution."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.whole = lambda: model  # not a submodule: the other half is not captured or copied

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        return (self.encoder(sample),)


class TinyDecoder(nn.Module):
    """``latent_sample -> (sample,)``: a latent to a picture in about [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.whole = lambda: model

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return (self.decoder(latent_sample),)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of one half of a checkpoint's autoencoder."""
    return wrap(spec, load_native(AutoencoderTiny, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one half of an autoencoder of perfuse or Diffusers."""
    whole = native(AutoencoderTiny, spec, model)
    return TinyEncoder(whole) if spec.role == Role.LATENT_ENCODER else TinyDecoder(whole)
