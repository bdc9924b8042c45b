"""The config, the components and the latents of ``AutoencoderKL``, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import ComponentSpec
from perfuse.models.autoencoder_halves import describe_halves
from perfuse.models.autoencoder_kl.latents import ScaledLatents
from perfuse.models.config import ModelConfig, held_by_residual

__all__ = ["AutoencoderKLConfig", "describe", "latents"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(ModelConfig):
    """A variational autoencoder between pictures and latents (Rombach et al. 2022)."""

    class_name: ClassVar[str] = "AutoencoderKL"

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        self.check_blocks(("DownEncoderBlock2D",), ("UpDecoderBlock2D",))

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_residual(sizes, self.block_out_channels[0])

    @property
    def downscale(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(2 ** (len(self.block_out_channels) - 1))


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """An autoencoder's encoder and decoder. The encoder returns moments; the host samples."""
    vae = AutoencoderKLConfig.from_dict(config)
    return describe_halves(vae, name, folder, config, parameters=2)


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> ScaledLatents:
    """The latents of a pipeline whose autoencoder has this config.

    Raises:
        CheckpointError: the number of means or deviations is not that of the latent channels.
    """
    vae = AutoencoderKLConfig.from_dict(config)
    for name, values in (("latents_mean", vae.latents_mean), ("latents_std", vae.latents_std)):
        if values is not None and len(values) != vae.latent_channels:
            raise vae.error(
                f"{name} has {len(values)} entries", f"one a latent channel, {vae.latent_channels}"
            )
    return ScaledLatents(
        channels=vae.latent_channels,
        downscale=vae.downscale,
        tile=vae.sample_size if isinstance(vae.sample_size, int) else vae.sample_size[0],
        scaling_factor=vae.scaling_factor,
        shift_factor=vae.shift_factor if vae.shift_factor is not None else 0.0,
        mean=vae.latents_mean,
        std=vae.latents_std,
    )
