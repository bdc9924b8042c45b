"""Latents packed to tokens, which Flux, Qwen-Image and others work on. Without torch."""

from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.arrays import is_torch
from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array

__all__ = ["PackedLatents", "packed"]


@dataclass(frozen=True, kw_only=True)
class PackedLatents(LatentSpec):
    """An autoencoder's latents [B, C, h, w], packed to tokens [B, h/P · w/P, P · P · C].

    An architecture has a subclass with its own ``kind``. A token's channels are ordered by the latent's
    channel, then its row, then its column.
    """

    #: P, the latents of a token's side.
    patch: ClassVar[int] = 2

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
        tokens = (inner["latent_height"] // self.patch) * (inner["latent_width"] // self.patch)
        return {**inner, "image_sequence": tokens}

    def encode(self, latents: Array) -> Array:
        return self.inner.encode(latents)

    def decode(self, latents: Array) -> Array:
        return self.inner.decode(latents)

    def pack(self, latents: Array) -> Array:
        (batch, channels, *sides), patch = latents.shape, self.patch
        height, width = (side // patch for side in sides)
        split = latents.reshape(batch, channels, height, patch, width, patch)
        moved = _permuted(split, 0, 2, 4, 1, 3, 5)
        return moved.reshape(batch, height * width, patch**2 * channels)

    def unpack(self, latents: Array, height: int, width: int) -> Array:
        patch, side = self.patch, self.downscale * self.patch
        height, width = height // side, width // side
        batch, channels = latents.shape[0], latents.shape[-1] // patch**2
        split = latents.reshape(batch, height, width, channels, patch, patch)
        moved = _permuted(split, 0, 3, 1, 4, 2, 5)
        return moved.reshape(batch, channels, height * patch, width * patch)


def packed(kind: type[PackedLatents], inner: LatentSpec | None) -> LatentSpec | None:
    """The latents of an autoencoder as packed ones of an architecture; ``None`` stays."""
    if inner is None:
        return None
    return kind(channels=inner.channels, downscale=inner.downscale, tile=inner.tile, inner=inner)


def _permuted(array: Any, *axes: int) -> Any:
    return array.permute(*axes) if is_torch(array) else array.transpose(axes)
