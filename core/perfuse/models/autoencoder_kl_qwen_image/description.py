"""The config, the components and the latents of Qwen-Image's autoencoder, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import ComponentSpec
from perfuse.models.autoencoder_halves import describe_halves
from perfuse.models.autoencoder_kl.latents import ScaledLatents
from perfuse.models.config import ModelConfig, held_by_residual

__all__ = ["AutoencoderKLQwenImageConfig", "describe", "latents"]

# fmt: off
_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLQwenImageConfig(ModelConfig):
    """A variational autoencoder of videos, causal in time (Wan 2025, arXiv:2503.20314)."""

    class_name: ClassVar[str] = "AutoencoderKLQwenImage"
    strict: ClassVar[bool] = True

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0
    input_channels: int = 3
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD

    def __post_init__(self) -> None:
        self.check_choice("attn_scales", ((),))  # with others Diffusers' encoder fails
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
        return held_by_residual(sizes, self.base_dim * self.dim_mult[0])

    @property
    def in_channels(self) -> int:
        return self.input_channels

    @property
    def out_channels(self) -> int:
        return self.input_channels

    @property
    def latent_channels(self) -> int:
        return self.z_dim

    @property
    def downscale(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(2 ** (len(self.dim_mult) - 1))


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """An autoencoder's encoder and decoder of one frame. The encoder returns moments."""
    vae = AutoencoderKLQwenImageConfig.from_dict(config)
    return describe_halves(vae, name, folder, config, parameters=2)


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> LatentSpec:
    """The latents of a pipeline whose autoencoder has this config: normalised by channel."""
    vae = AutoencoderKLQwenImageConfig.from_dict(config)
    return ScaledLatents(
        channels=vae.z_dim,
        downscale=vae.downscale,
        scaling_factor=1.0,
        mean=vae.latents_mean,
        std=vae.latents_std,
    )
