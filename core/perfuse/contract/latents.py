"""How a picture becomes what the denoiser works on, and back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["LatentSpec", "PixelLatents"]

Array = Any


@dataclass(frozen=True, kw_only=True)
class LatentSpec(ABC):
    """The latents of a pipeline. An architecture that has others brings a subclass of its own.

    Subclasses are frozen dataclasses of plain values: an exported folder's manifest holds them.
    """

    #: The class name of the architecture that owns the subclass; the manifest names it so.
    kind: ClassVar[str]

    #: Channels of what the noise is drawn for, before it is packed.
    channels: int
    #: Pixels that a latent spans, in height and in width.
    downscale: int

    @property
    def multiple(self) -> int:
        """Heights and widths in pixels are multiples of this."""
        return self.downscale

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """The shape of the noise for pictures of this size in pixels, before it is packed."""
        return (batch, self.channels, height // self.downscale, width // self.downscale)

    def dims(self, height: int, width: int) -> dict[str, int]:
        """Each named dimension of the components' signatures that follows from a size in pixels."""
        return {
            "height": height,
            "width": width,
            "latent_height": height // self.downscale,
            "latent_width": width // self.downscale,
        }

    @abstractmethod
    def encode(self, latents: Array) -> Array:
        """The autoencoder's latents [B, C, h, w] as the pipeline's."""

    @abstractmethod
    def decode(self, latents: Array) -> Array:
        """The pipeline's latents [B, C, h, w] as the autoencoder's."""

    def pack(self, latents: Array) -> Array:
        """Latents as the denoiser takes them."""
        return latents

    def unpack(self, latents: Array, height: int, width: int) -> Array:
        """What ``pack`` made, as it was; the size is the picture's, in pixels."""
        return latents


@dataclass(frozen=True, kw_only=True)
class PixelLatents(LatentSpec):
    """For a denoiser that works on pictures themselves."""

    kind: ClassVar[str] = "pixels"

    channels: int = 3
    downscale: int = 1

    def encode(self, latents: Array) -> Array:
        return latents

    def decode(self, latents: Array) -> Array:
        return latents
