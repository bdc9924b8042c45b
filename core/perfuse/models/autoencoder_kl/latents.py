"""The latents that an autoencoder makes. Apart from its description: an export needs these alone."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.arrays import is_torch, place
from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array

__all__ = ["ScaledLatents"]


@dataclass(frozen=True, kw_only=True)
class ScaledLatents(LatentSpec):
    """Latents scaled to about unit variance by constants in the autoencoder's config.

    The pipeline's latent is ``(z - mean) / std * scaling_factor`` if mean and std are given, and
    ``(z - shift_factor) * scaling_factor`` otherwise.
    """

    kind: ClassVar[str] = "AutoencoderKL"

    scaling_factor: float
    shift_factor: float = 0.0
    #: One number per channel.
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def encode(self, latents: Array) -> Array:
        scale, shift = self._coefficients(latents)
        return (latents - shift) / scale

    def decode(self, latents: Array) -> Array:
        scale, shift = self._coefficients(latents)
        return latents * scale + shift

    def _coefficients(self, like: Array) -> tuple[Any, Any]:
        """``(a, b)`` such that the autoencoder's latent is ``a * latent + b``."""
        if self.mean is None or self.std is None:
            return 1.0 / self.scaling_factor, self.shift_factor
        shape = (1, self.channels, 1, 1)
        std = np.asarray(self.std, dtype=np.float32).reshape(shape)
        mean = np.asarray(self.mean, dtype=np.float32).reshape(shape)
        device = like.device if is_torch(like) else None
        return place(std / np.float32(self.scaling_factor), device), place(mean, device)
