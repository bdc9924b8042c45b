"""Latents: how pictures become the denoiser's input, and back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.errors import InputError

__all__ = ["LatentSpec", "PixelLatents"]

Array = Any

#: More channels, pixels a latent, or pixels of a tile than this have no latents.
_MOST = 2**20


@dataclass(frozen=True, kw_only=True)
class LatentSpec(ABC):
    """The shape and scaling of a pipeline's latents. An architecture may bring its own subclass.

    Subclasses are frozen dataclasses of plain values: an exported folder's manifest stores them.
    """

    #: The class name of the architecture that owns the subclass; written to the manifest.
    kind: ClassVar[str]

    #: Channels of the initial noise, before packing.
    channels: int
    #: Pixels per latent, in height and in width: 8 for Stable Diffusion.
    downscale: int
    #: Pixels of a tile's side, where large pictures are decoded and encoded in tiles.
    tile: int = 512

    def __post_init__(self) -> None:
        for name in ("channels", "downscale", "tile"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= _MOST:
                raise InputError(f"{name} of the latents is {value!r}; it takes 1 to {_MOST}.")

    @property
    def multiple(self) -> int:
        """Heights and widths in pixels are multiples of this."""
        return self.downscale

    @property
    def channel_axis(self) -> int:
        """The axis of the channels, once latents are packed."""
        return 1

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """The shape of the noise for pictures of this size in pixels, before it is packed."""
        return (batch, self.channels, height // self.downscale, width // self.downscale)

    def dims(self, height: int, width: int) -> dict[str, int]:
        """The dimensions of the components' signatures that a size in pixels determines."""
        return {
            "height": height,
            "width": width,
            "latent_height": height // self.downscale,
            "latent_width": width // self.downscale,
        }

    @abstractmethod
    def encode(self, latents: Array) -> Array:
        """From the autoencoder's latents [B, C, h, w] to the pipeline's, of the same shape."""

    @abstractmethod
    def decode(self, latents: Array) -> Array:
        """From the pipeline's latents [B, C, h, w] to the autoencoder's, of the same shape."""

    def pack(self, latents: Array) -> Array:
        """Rearrange latents to the shape that the denoiser takes; by default as they are."""
        return latents

    def unpack(self, latents: Array, height: int, width: int) -> Array:
        """Undo ``pack``, for a picture of this size in pixels."""
        return latents


@dataclass(frozen=True, kw_only=True)
class PixelLatents(LatentSpec):
    """The "latents" of a denoiser that works on pixels: pictures as they are."""

    kind: ClassVar[str] = "pixels"

    channels: int = 3
    downscale: int = 1

    def encode(self, latents: Array) -> Array:
        return latents

    def decode(self, latents: Array) -> Array:
        return latents
