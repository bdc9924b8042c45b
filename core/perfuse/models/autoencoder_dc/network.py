"""The deep-compression autoencoder of Sana (Chen et al. 2024, arXiv:2410.10733).

Layers that halve or double a picture are added to what the picture's own pixels give, averaged or
repeated; small pictures are attended to, linearly (Cai et al. 2023, arXiv:2205.14756).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.models.adaptive_norms import RMSNorm
from perfuse.models.autoencoder_dc.description import AutoencoderDCConfig, Half
from perfuse.models.autoencoder_halves import Switches
from perfuse.models.autoencoder_kl.network import DecoderOutput
from perfuse.models.building import load_native, native
from perfuse.models.embeddings import activation
from perfuse.models.gated_convolution import GatedConvolution, over_channels
from perfuse.models.model import Model
from perfuse.models.outputs import ModelOutput
from perfuse.sources.weights import Weights

__all__ = ["AutoencoderDC", "build", "wrap"]

_EPS = 1e-5
#: What keeps a division by the sum of weights finite.
_TINY = 1e-15


def averaged(picture: Tensor, channels: int) -> Tensor:
    """[B, C, H, W] to as many channels, each the mean of its neighbours."""
    groups: Tensor = picture.unflatten(1, (channels, -1))  # type: ignore[no-untyped-call]
    return groups.mean(dim=2)


def repeated(picture: Tensor, channels: int) -> Tensor:
    """[B, C, H, W] to as many channels, each as often as the others."""
    times = channels // picture.shape[1]
    return picture[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions and a norm, added to the input."""

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = activation(act)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = RMSNorm(channels, _EPS, bias=True)

    def forward(self, picture: Tensor) -> Tensor:
        return over_channels(self.norm, self.conv2(self.act(self.conv1(picture)))) + picture


class Summed(nn.Module):
    """Queries, keys and values, each summed over a square of pixels, then mixed within a head."""

    def __init__(self, channels: int, heads: int, side: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(
            channels, channels, side, padding=side // 2, groups=channels, bias=False
        )
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=3 * heads, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.proj_out(self.proj_in(states))
        return output


class MultiscaleAttention(nn.Module):
    """Linear attention among pixels, and among sums of pixels, added to the input."""

    def __init__(self, channels: int, head_dim: int, sides: tuple[int, ...]) -> None:
        super().__init__()
        heads = channels // head_dim
        inner = heads * head_dim
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(Summed(3 * inner, heads, side) for side in sides)
        self.to_out = nn.Linear(inner * (1 + len(sides)), channels, bias=False)
        self.norm_out = RMSNorm(channels, _EPS, bias=True)

    def forward(self, picture: Tensor) -> Tensor:
        size, pixels = picture.shape[-2:], picture.movedim(1, -1)
        layers = (self.to_q, self.to_k, self.to_v)
        states = torch.cat([layer(pixels) for layer in layers], dim=3).movedim(-1, 1)
        states = torch.cat([states, *(summed(states) for summed in self.to_qkv_multiscale)], dim=1)
        heads = states.float().unflatten(1, (-1, 3 * self.head_dim)).flatten(3)  # type: ignore[no-untyped-call]
        query, key, value = heads.chunk(3, dim=2)  # each [B, H, D, H · W]
        query, key = F.relu(query), F.relu(key)
        weighed = (value @ key.transpose(2, 3)) @ query
        total = key.sum(dim=3)[:, :, None] @ query
        joined = (weighed / (total + _TINY)).to(picture.dtype)
        attended = joined.flatten(1, 2).unflatten(2, size)
        output = self.to_out(attended.movedim(1, -1))
        normed: Tensor = self.norm_out(output).movedim(-1, 1)
        return normed + picture


class AttentionBlock(nn.Module):
    """Multi-scale attention, then a gated convolution."""

    def __init__(self, channels: int, head_dim: int, sides: tuple[int, ...]) -> None:
        super().__init__()
        self.attn = MultiscaleAttention(channels, head_dim, sides)
        self.conv_out = GatedConvolution(channels, normed=True)

    def forward(self, picture: Tensor) -> Tensor:
        output: Tensor = self.conv_out(self.attn(picture))
        return output


class Smaller(nn.Module):
    """Half as high and wide, by a convolution; ``packs`` has it fold pixels into channels."""

    def __init__(self, inputs: int, outputs: int, *, packs: bool, shortcut: bool = True) -> None:
        super().__init__()
        stride, made = (1, outputs // 4) if packs else (2, outputs)
        self.conv = nn.Conv2d(inputs, made, 3, stride=stride, padding=1)
        self.packs, self.shortcut, self.outputs = packs, shortcut, outputs

    def forward(self, picture: Tensor) -> Tensor:
        output: Tensor = self.conv(picture)
        if self.packs:
            output = F.pixel_unshuffle(output, 2)
        if not self.shortcut:
            return output
        return output + averaged(F.pixel_unshuffle(picture, 2), self.outputs)


class Larger(nn.Module):
    """Twice as high and wide; ``repeats`` enlarges the picture before the convolution."""

    def __init__(self, inputs: int, outputs: int, *, repeats: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs if repeats else 4 * outputs, 3, padding=1)
        self.repeats, self.shortcut, self.outputs = repeats, shortcut, outputs

    def forward(self, picture: Tensor) -> Tensor:
        if self.repeats:
            output: Tensor = self.conv(F.interpolate(picture, scale_factor=2.0, mode="nearest"))
        else:
            output = F.pixel_shuffle(self.conv(picture), 2)
        if not self.shortcut:
            return output
        return output + F.pixel_shuffle(repeated(picture, 4 * self.outputs), 2)


def stage(config: AutoencoderDCConfig, half: Half, i: int) -> list[nn.Module]:
    """The blocks of one size."""
    width = half.widths[i]
    if half.kinds[i] == "ResBlock":
        return [ResidualBlock(width, half.acts[i]) for _ in range(half.layers[i])]
    head = config.attention_head_dim
    return [AttentionBlock(width, head, half.scales[i]) for _ in range(half.layers[i])]


class Encoder(nn.Module):
    """Pictures to latents."""

    def __init__(self, config: AutoencoderDCConfig) -> None:
        super().__init__()
        half, last = config.encoder, len(config.encoder.widths) - 1
        packs = config.downsample_block_type == "pixel_unshuffle"
        self.conv_in: nn.Module = nn.Conv2d(config.in_channels, half.widths[0], 3, padding=1)
        if not half.layers[0]:
            self.conv_in = Smaller(config.in_channels, half.widths[1], packs=packs, shortcut=False)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(half.widths):
            blocks = stage(config, half, i)
            if i < last and blocks:
                blocks.append(Smaller(width, half.widths[i + 1], packs=packs))
            self.down_blocks.append(nn.Sequential(*blocks))
        self.channels = config.latent_channels
        self.conv_out = nn.Conv2d(half.widths[-1], self.channels, 3, padding=1)
        self.shortcut = config.encoder_out_shortcut

    def forward(self, picture: Tensor) -> Tensor:
        hidden = self.conv_in(picture)
        for block in self.down_blocks:
            hidden = block(hidden)
        output: Tensor = self.conv_out(hidden)
        return output + averaged(hidden, self.channels) if self.shortcut else output


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: AutoencoderDCConfig) -> None:
        super().__init__()
        half, last = config.decoder, len(config.decoder.widths) - 1
        repeats = config.upsample_block_type == "interpolate"
        self.width, self.shortcut = half.widths[-1], config.decoder_in_shortcut
        self.conv_in = nn.Conv2d(config.latent_channels, self.width, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(half.widths):
            blocks = stage(config, half, i)
            if i < last and blocks:
                blocks.insert(0, Larger(half.widths[i + 1], width, repeats=repeats))
            self.up_blocks.append(nn.Sequential(*blocks))
        first = half.widths[0 if half.layers[0] else 1]
        self.norm_out = RMSNorm(first, _EPS, bias=True)
        self.act = activation(config.decoder_conv_act_fn)
        self.conv_out: nn.Module = nn.Conv2d(first, config.in_channels, 3, padding=1)
        if not half.layers[0]:
            self.conv_out = Larger(first, config.in_channels, repeats=repeats, shortcut=False)

    def forward(self, latents: Tensor) -> Tensor:
        hidden: Tensor = self.conv_in(latents)
        if self.shortcut:
            hidden = hidden + repeated(latents, self.width)
        for block in reversed(self.up_blocks):
            hidden = block(hidden)
        output: Tensor = self.conv_out(self.act(over_channels(self.norm_out, hidden)))
        return output


@dataclass(frozen=True)
class EncoderOutput(ModelOutput):
    """An encoded picture."""

    latent: Tensor


class AutoencoderDC(Model, Switches):
    """Pictures [B, 3, H, W] in [-1, 1] to latents and back."""

    config_class = AutoencoderDCConfig
    config: AutoencoderDCConfig

    def build(self) -> None:
        self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Tensor]:
        """[B, C, H, W] in [-1, 1] to unscaled latents [B, L, h, w]."""
        latent = self.encoder(x)
        return EncoderOutput(latent) if return_dict else (latent,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """[B, L, h, w], already divided by the scaling factor, to [B, C, H, W]."""
        sample = self.decoder(z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode again."""
        return self.decode(self.encoder(sample), return_dict)


class DcEncoder(nn.Module):
    """``sample -> (latent_parameters,)``: the latents."""

    def __init__(self, model: AutoencoderDC) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.whole = lambda: model  # not a submodule: the other half is not captured or copied

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        return (self.encoder(sample),)


class DcDecoder(nn.Module):
    """``latent_sample -> (sample,)``: a picture in about [-1, 1]."""

    def __init__(self, model: AutoencoderDC) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.whole = lambda: model

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return (self.decoder(latent_sample),)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of one half of a checkpoint's autoencoder."""
    return wrap(spec, load_native(AutoencoderDC, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one half of an autoencoder of perfuse or Diffusers."""
    whole = native(AutoencoderDC, spec, model)
    assert isinstance(whole, AutoencoderDC)
    return DcEncoder(whole) if spec.role == Role.LATENT_ENCODER else DcDecoder(whole)
