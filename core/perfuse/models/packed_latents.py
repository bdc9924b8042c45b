"""Latents two by two pixels a token, which Flux, Qwen-Image and others work on. Without torch."""

from dataclasses import dataclass
from typing import Any

from perfuse.arrays import is_torch
from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array

__all__ = ["PackedLatents", "packed"]


@dataclass(frozen=True, kw_only=True)
class PackedLatents(LatentSpec):
    """An autoencoder's latents [B, C, h, w], packed to tokens [B, h/2 · w/2, 4 C].

    An architecture has a subclass with its own ``kind``. A token's channels are ordered by the latent's
    channel, then its row, then its column.
    """

    #: The autoencoder's latents, which are packed.
    inner: LatentSpec

    @property
    def multiple(self) -> int:
        return 2 * self.downscale

    @property
    def channel_axis(self) -> int:
        return 2

    def dims(self, height: int, width: int) -> dict[str, int]:
        """The autoencoder's, and ``image_sequence``, the number of tokens."""
        inner = self.inner.dims(height, width)
        tokens = (inner["latent_height"] // 2) * (inner["latent_width"] // 2)
        return {**inner, "image_sequence": tokens}

    def encode(self, latents: Array) -> Array:
        return self.inner.encode(latents)

    def decode(self, latents: Array) -> Array:
        return self.inner.decode(latents)

    def pack(self, latents: Array) -> Array:
        batch, channels, height, width = latents.shape
        split = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
        moved = _permuted(split, 0, 2, 4, 1, 3, 5)
        return moved.reshape(batch, (height // 2) * (width // 2), 4 * channels)

    def unpack(self, latents: Array, height: int, width: int) -> Array:
        height, width = height // self.downscale, width // self.downscale
        batch, channels = latents.shape[0], latents.shape[-1] // 4
        split = latents.reshape(batch, height // 2, width // 2, channels, 2, 2)
        return _permuted(split, 0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def packed(kind: type[PackedLatents], inner: LatentSpec | None) -> LatentSpec | None:
    """The latents of an autoencoder as packed ones of an architecture; ``None`` stays."""
    if inner is None:
        return None
    return kind(channels=inner.channels, downscale=inner.downscale, tile=inner.tile, inner=inner)


def _permuted(array: Any, *axes: int) -> Any:
    return array.permute(*axes) if is_torch(array) else array.transpose(axes)
