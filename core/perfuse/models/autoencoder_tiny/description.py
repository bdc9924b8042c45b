"""The config, the components and the latents of ``AutoencoderTiny``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import ComponentSpec
from perfuse.models.autoencoder_halves import describe_halves
from perfuse.models.autoencoder_kl.latents import ScaledLatents
from perfuse.models.config import ModelConfig, held_by_residual

__all__ = ["AutoencoderTinyConfig", "describe", "latents"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderTinyConfig(ModelConfig):
    """A distilled autoencoder of plain convolutions (Bohan 2023, github.com/madebyollin/taesd)."""

    class_name: ClassVar[str] = "AutoencoderTiny"

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    #: That of the decoder, which Diffusers writes, too.
    block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    latent_channels: int = 4
    upsampling_scaling_factor: int = 2
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    force_upcast: bool = False
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        for half in ("encoder", "decoder"):
            widths = getattr(self, f"{half}_block_out_channels")
            blocks = getattr(self, f"num_{half}_blocks")
            if len(widths) != len(blocks):
                raise self.error(
                    f"num_{half}_blocks has {len(blocks)} entries",
                    f"one for each of {half}_block_out_channels, {len(widths)}",
                )
        for half in ("encoder", "decoder"):
            widths = getattr(self, f"{half}_block_out_channels")
            if len(set(widths)) > 1:
                raise self.error(
                    f"{half}_block_out_channels is {widths}",
                    "one width for all blocks: no layer goes from one to another",
                )
        if self.upsampling_scaling_factor != 2 or len(self.num_encoder_blocks) != len(
            self.num_decoder_blocks
        ):
            raise self.error(
                f"upsampling_scaling_factor is {self.upsampling_scaling_factor} for "
                f"{len(self.num_encoder_blocks)} encoder and {len(self.num_decoder_blocks)} decoder "
                "stages",
                "2, and as many stages in the one half as in the other",
            )

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_residual(sizes, self.decoder_block_out_channels[0])

    @property
    def downscale(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(2 ** (len(self.num_encoder_blocks) - 1))


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """An autoencoder's encoder and decoder. The encoder returns latents, not their moments."""
    vae = AutoencoderTinyConfig.from_dict(config)
    return describe_halves(vae, name, folder, config, parameters=1)


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> ScaledLatents:
    """The latents of a pipeline whose autoencoder has this config."""
    vae = AutoencoderTinyConfig.from_dict(config)
    return ScaledLatents(
        channels=vae.latent_channels,
        downscale=vae.downscale,
        scaling_factor=vae.scaling_factor,
        shift_factor=vae.shift_factor,
    )
