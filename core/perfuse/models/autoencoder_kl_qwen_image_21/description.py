"""The config, the components and the latents of Qwen-Image 2.1's autoencoder, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import ComponentSpec
from perfuse.models.autoencoder_halves import describe_halves
from perfuse.models.autoencoder_kl.latents import ScaledLatents
from perfuse.models.config import ModelConfig, held_by_residual

__all__ = ["AutoencoderKLQwenImage21Config", "describe", "latents"]

# fmt: off
_MEAN = (
    0.5126, 0.7721, -0.0631, 1.3506, -0.7855, -2.1025, -0.3458, 1.3722,
    1.8873, -1.7177, -0.6510, 0.2732, 0.7562, -0.6163, -1.0277, 3.8363,
    2.0210, 0.0472, 0.9320, 2.0087, 2.4954, -0.1391, -1.4249, 1.8464,
    -0.5236, 1.2826, 3.7046, -1.3035, 2.7286, -1.4518, -1.9036, -1.9955,
    -0.0342, -1.0265, -0.7636, 3.0555, 0.0746, -3.0751, -0.1076, 1.7376,
    -1.0914, -1.9435, -0.2784, -1.3680, 0.4809, -0.4433, 0.3764, 0.5729,
    -2.0595, 1.0960, -1.3260, -2.0211, -5.0179, 0.5275, 4.0162, 1.8505,
    0.3026, 1.9373, 1.4937, 0.2632, 0.5547, -1.7121, -0.1562, 0.0304,
)
_STD = (
    3.2001, 3.2936, 3.4321, 3.0091, 3.1061, 4.0379, 4.0705, 3.7910,
    3.0785, 3.6500, 3.9308, 3.0904, 2.8778, 3.7675, 3.7320, 5.0756,
    3.2864, 4.0397, 3.1317, 4.0443, 2.9249, 3.9454, 3.0988, 4.2489,
    3.4896, 3.8513, 3.9323, 3.4719, 3.7498, 4.2830, 3.5694, 4.2467,
    3.9037, 3.2947, 5.0770, 3.5075, 3.2700, 3.4767, 2.8063, 5.1125,
    3.5327, 4.7833, 3.1286, 4.1819, 3.8527, 3.8312, 3.5605, 4.3875,
    3.9624, 4.0168, 3.5643, 4.0550, 5.5614, 4.2963, 4.4080, 3.4959,
    3.8747, 3.7608, 3.5735, 3.1490, 3.7662, 3.6746, 3.4563, 3.8161,
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLQwenImage21Config(ModelConfig):
    """A variational autoencoder of pictures of four channels, with shortcuts around its resampling."""

    class_name: ClassVar[str] = "AutoencoderKLQwenImage21"
    strict: ClassVar[bool] = True

    base_dim: int = 96
    decoder_base_dim: int | None = 144
    z_dim: int = 64
    dim_mult: tuple[int, ...] = (1, 2, 4, 8, 8)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True, True)
    dropout: float = 0.0
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD
    is_residual: bool = True
    in_channels: int = 4
    out_channels: int = 4
    patch_size: int | None = None
    scale_factor_temporal: int | None = 8
    scale_factor_spatial: int | None = 16

    def __post_init__(self) -> None:
        self.check_choice("attn_scales", ((),))
        self.check_choice("is_residual", (True,))
        self.check_choice("patch_size", (None,))
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise self.error(
                f"temperal_downsample has {len(self.temperal_downsample)} entries",
                f"one between two of dim_mult, {len(self.dim_mult) - 1}",
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                found = f"{name} has {len(getattr(self, name))} entries"
                raise self.error(found, f"one a latent channel, {self.z_dim}")

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_residual(sizes, self.decoder_widths[-1])

    @property
    def latent_channels(self) -> int:
        return self.z_dim

    @property
    def downscale(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(2 ** (len(self.dim_mult) - 1))

    @property
    def encoder_widths(self) -> list[int]:
        """Channels before the first level, and after each."""
        return [self.base_dim * times for times in (1, *self.dim_mult)]

    @property
    def decoder_widths(self) -> list[int]:
        """The same of the decoder, whose levels come in the other order."""
        base = self.base_dim if self.decoder_base_dim is None else self.decoder_base_dim
        return [base * times for times in (self.dim_mult[-1], *self.dim_mult[::-1])]


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """An autoencoder's encoder and decoder of one picture. The encoder returns moments."""
    vae = AutoencoderKLQwenImage21Config.from_dict(config)
    return describe_halves(vae, name, folder, config, parameters=2)


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> LatentSpec:
    """The latents of a pipeline whose autoencoder has this config: normalised by channel."""
    vae = AutoencoderKLQwenImage21Config.from_dict(config)
    return ScaledLatents(
        channels=vae.z_dim,
        downscale=vae.downscale,
        scaling_factor=1.0,
        mean=vae.latents_mean,
        std=vae.latents_std,
    )
