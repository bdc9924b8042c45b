"""The config, the components and the latents of ``AutoencoderDC``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import ComponentSpec
from perfuse.models.autoencoder_halves import describe_halves
from perfuse.models.autoencoder_kl.latents import ScaledLatents
from perfuse.models.config import ModelConfig, held_by_residual

__all__ = ["AutoencoderDCConfig", "Half", "describe", "latents"]

_WIDTHS = (128, 256, 512, 512, 1024, 1024)
_SCALES: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
_RESIDUAL, _ATTENTION = "ResBlock", "EfficientViTBlock"


@dataclass(frozen=True, kw_only=True)
class Half:
    """The stages of an encoder or a decoder, from the largest picture to the smallest."""

    kinds: tuple[str, ...]
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    #: Of attention, the sides of the squares that it sums over.
    scales: tuple[tuple[int, ...], ...]
    #: The activations of residual blocks.
    acts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AutoencoderDCConfig(ModelConfig):
    """A deep-compression autoencoder (Chen et al. 2024, arXiv:2410.10733)."""

    class_name: ClassVar[str] = "AutoencoderDC"
    strict: ClassVar[bool] = True

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: str | tuple[str, ...] = _RESIDUAL
    decoder_block_types: str | tuple[str, ...] = _RESIDUAL
    encoder_block_out_channels: tuple[int, ...] = _WIDTHS
    decoder_block_out_channels: tuple[int, ...] = _WIDTHS
    encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[tuple[int, ...], ...] = _SCALES
    decoder_qkv_multiscales: tuple[tuple[int, ...], ...] = _SCALES
    upsample_block_type: str = "pixel_shuffle"
    downsample_block_type: str = "pixel_unshuffle"
    decoder_norm_types: str | tuple[str, ...] = "rms_norm"
    decoder_act_fns: str | tuple[str, ...] = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: str = "relu"
    scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        norms = self.decoder_norm_types
        if set((norms,) if isinstance(norms, str) else norms) != {"rms_norm"}:
            raise self.error(f"decoder_norm_types is {norms!r}", "rms_norm")
        for half in (self.encoder, self.decoder):
            if len({len(values) for values in vars(half).values()}) != 1:
                raise self.error(f"its stages are {half}", "as many values of each kind")
            if unknown := set(half.kinds) - {_RESIDUAL, _ATTENTION}:
                raise self.error(f"its blocks are {unknown}", f"{_RESIDUAL} and {_ATTENTION}")
        if len(self.encoder.widths) != len(self.decoder.widths):
            raise self.error("its halves have not as many stages", "as many in both")

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_residual(sizes, self.decoder.widths[0])

    @property
    def encoder(self) -> Half:
        return self._half("encoder", "silu")

    @property
    def decoder(self) -> Half:
        return self._half("decoder", self.decoder_act_fns)

    def _half(self, name: str, acts: str | tuple[str, ...]) -> Half:
        widths = getattr(self, f"{name}_block_out_channels")
        kinds = getattr(self, f"{name}_block_types")
        return Half(
            kinds=(kinds,) * len(widths) if isinstance(kinds, str) else kinds,
            widths=widths,
            layers=getattr(self, f"{name}_layers_per_block"),
            scales=getattr(self, f"{name}_qkv_multiscales"),
            acts=(acts,) * len(widths) if isinstance(acts, str) else acts,
        )

    @property
    def out_channels(self) -> int:
        """Channels of a picture that it decodes."""
        return self.in_channels

    @property
    def downscale(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(2 ** (len(self.encoder_block_out_channels) - 1))


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """An autoencoder's encoder and decoder. The encoder returns latents, not their moments."""
    vae = AutoencoderDCConfig.from_dict(config)
    return describe_halves(vae, name, folder, config, parameters=1)


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> ScaledLatents:
    """The latents of a pipeline whose autoencoder has this config."""
    vae = AutoencoderDCConfig.from_dict(config)
    return ScaledLatents(
        channels=vae.latent_channels, downscale=vae.downscale, scaling_factor=vae.scaling_factor
    )
