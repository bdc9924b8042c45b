"""The config, the components and the latents of ``AsymmetricAutoencoderKL``, without torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import ComponentSpec
from perfuse.models.autoencoder_halves import describe_halves
from perfuse.models.autoencoder_kl.description import AutoencoderKLConfig
from perfuse.models.autoencoder_kl.latents import ScaledLatents
from perfuse.models.config import ModelConfig, held_by_residual
from perfuse.models.shapes import floating

__all__ = ["AsymmetricConfig", "describe", "latents"]


@dataclass(frozen=True, kw_only=True)
class AsymmetricConfig(ModelConfig):
    """An autoencoder whose halves have layers and widths of their own (arXiv:2306.04632)."""

    class_name: ClassVar[str] = "AsymmetricAutoencoderKL"

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    down_block_out_channels: tuple[int, ...] = (64,)
    layers_per_down_block: int = 1
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    up_block_out_channels: tuple[int, ...] = (64,)
    layers_per_up_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    #: That of the decoder whatever is given, as in Diffusers, which writes it, too.
    block_out_channels: tuple[int, ...] = (64,)
    force_upcast: bool = False

    def __post_init__(self) -> None:
        down, up = len(self.down_block_out_channels), len(self.up_block_out_channels)
        if down != up:
            raise self.error(
                f"the encoder has {down} blocks and the decoder {up}", "as many in each half"
            )
        object.__setattr__(self, "block_out_channels", self.up_block_out_channels)
        _ = self.encoder, self.decoder  # each refuses what it cannot take
        missing = [level for level in self.joined if level not in self.condition_levels]
        if missing:
            width, halvings = missing[0]
            raise self.error(
                f"up_block_out_channels is {self.up_block_out_channels}, and what is kept has no "
                f"{width} channels at 1/{2**halvings} of the size",
                "widths that double from block to block, up to the last",
            )

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_residual(sizes, self.up_block_out_channels[0])

    @property
    def encoder(self) -> AutoencoderKLConfig:
        """The encoder's half, as a config of the symmetric autoencoder."""
        return self._half(self.down_block_out_channels, self.layers_per_down_block)

    @property
    def decoder(self) -> AutoencoderKLConfig:
        """The decoder's half, as a config of the symmetric autoencoder."""
        return self._half(self.up_block_out_channels, self.layers_per_up_block)

    def _half(self, widths: tuple[int, ...], layers: int) -> AutoencoderKLConfig:
        return AutoencoderKLConfig(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            down_block_types=self.down_block_types,
            up_block_types=self.up_block_types,
            block_out_channels=widths,
            layers_per_block=layers,
            act_fn=self.act_fn,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_num_groups,
        )

    @property
    def downscale(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(2 ** (len(self.up_block_out_channels) - 1))

    @property
    def condition_channels(self) -> tuple[int, ...]:
        """The widths of the five convolutions over what is kept."""
        first, last = self.up_block_out_channels[0], self.up_block_out_channels[-1]
        return (*(min(first * 2**i, last) for i in range(4)), last)

    @property
    def condition_levels(self) -> dict[tuple[int, int], int]:
        """Channels and halvings of the size to the convolution that gives them, the last of several."""
        return {(width, max(i - 1, 0)): i for i, width in enumerate(self.condition_channels)}

    @property
    def joined(self) -> tuple[tuple[int, int], ...]:
        """Channels and halvings where the decoder is joined with what is kept: each block, the end."""
        widths = self.up_block_out_channels[::-1]
        last = len(widths) - 1
        before = tuple((widths[max(i - 1, 0)], last - i) for i in range(len(widths)))
        return (*before, (widths[-1], 0))


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """An encoder, and a decoder that also takes a picture and a mask: 0 where the picture is kept."""
    vae = AsymmetricConfig.from_dict(config)
    encoder, decoder = describe_halves(vae, name, folder, config, parameters=2)
    size = (f"latent_height*{vae.downscale}", f"latent_width*{vae.downscale}")
    kept = (
        floating("image", "batch", vae.out_channels, *size),
        floating("mask", "batch", 1, *size),
    )
    inputs = (*decoder.signature.inputs, *kept)
    signature = dataclasses.replace(decoder.signature, inputs=inputs)
    return encoder, dataclasses.replace(decoder, signature=signature)


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> ScaledLatents:
    """The latents of a pipeline whose autoencoder has this config."""
    vae = AsymmetricConfig.from_dict(config)
    return ScaledLatents(
        channels=vae.latent_channels,
        downscale=vae.downscale,
        tile=vae.sample_size,
        scaling_factor=vae.scaling_factor,
    )
