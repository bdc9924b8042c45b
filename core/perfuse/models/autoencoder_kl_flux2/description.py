"""The config, the components and the latents of FLUX.2's autoencoder, without torch.

Its latents are gathered two by two and normalised by the statistics of a batch norm. Those are among
the weights, so that both halves of the autoencoder do this inside: what they give and take are
normalised patches, 128 channels for 16 by 16 pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array, ComponentSpec
from perfuse.models.autoencoder_halves import describe_halves
from perfuse.models.config import ModelConfig, held_by_residual

__all__ = ["AutoencoderKLFlux2Config", "PatchLatents", "describe", "latents"]

_LEVELS = 4


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLFlux2Config(ModelConfig):
    """A variational autoencoder between pictures and latents of 32 channels."""

    class_name: ClassVar[str] = "AutoencoderKLFlux2"
    strict: ClassVar[bool] = True

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * _LEVELS
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * _LEVELS
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_block_out_channels: tuple[int, ...] | None = None
    layers_per_block: int = 2
    act_fn: str = "silu"
    latent_channels: int = 32
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 1024
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    batch_norm_eps: float = 1e-4
    batch_norm_momentum: float = 0.1
    patch_size: tuple[int, int] = (2, 2)
    force_upcast: bool = False

    def __post_init__(self) -> None:
        self.check_blocks(("DownEncoderBlock2D",), ("UpDecoderBlock2D",))
        self.check_choice("patch_size", ((2, 2),))
        decoder = self.decoder_block_out_channels
        if decoder is not None and len(decoder) != len(self.block_out_channels):
            raise self.error(
                f"decoder_block_out_channels has {len(decoder)} entries",
                f"one a block, {len(self.block_out_channels)}",
            )

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_residual(
            sizes, (self.decoder_block_out_channels or self.block_out_channels)[0]
        )

    @property
    def downscale(self) -> int:
        """Pixels per patch of latents, in height and in width."""
        return int(2 ** len(self.block_out_channels))

    @property
    def patch_channels(self) -> int:
        """Channels of a patch of two by two latents."""
        return 4 * self.latent_channels


@dataclass(frozen=True, kw_only=True)
class PatchLatents(LatentSpec):
    """Normalised patches of latents, as the autoencoder gives and takes them."""

    kind: ClassVar[str] = "AutoencoderKLFlux2"

    def encode(self, latents: Array) -> Array:
        return latents

    def decode(self, latents: Array) -> Array:
        return latents


@dataclass(frozen=True, kw_only=True)
class _Patches:
    """The config as its halves are seen from outside."""

    class_name: str
    in_channels: int
    out_channels: int
    latent_channels: int
    downscale: int


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """An autoencoder's encoder, which gives means alone, and its decoder."""
    vae = AutoencoderKLFlux2Config.from_dict(config)
    seen: Any = _Patches(
        class_name=vae.class_name,
        in_channels=vae.in_channels,
        out_channels=vae.out_channels,
        latent_channels=vae.patch_channels,
        downscale=vae.downscale,
    )
    return describe_halves(seen, name, folder, config, parameters=1)


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> PatchLatents:
    """The latents of a pipeline whose autoencoder has this config."""
    vae = AutoencoderKLFlux2Config.from_dict(config)
    size = vae.sample_size if isinstance(vae.sample_size, int) else vae.sample_size[0]
    return PatchLatents(channels=vae.patch_channels, downscale=vae.downscale, tile=size)
