"""What autoencoders between pictures and latents share: two components, and switches of tiling."""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature
from perfuse.models.shapes import floating

__all__ = ["Switches", "describe_halves", "reads"]

#: What the tensors that only one half reads begin with.
_OF_ONE = {
    Role.LATENT_ENCODER: ("encoder.", "quant_conv."),
    Role.LATENT_DECODER: ("decoder.", "post_quant_conv."),
}


class _Config(Protocol):
    """What the configs of autoencoders have."""

    class_name: ClassVar[str]

    @property
    def in_channels(self) -> int: ...

    @property
    def out_channels(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def downscale(self) -> int: ...


def describe_halves(
    vae: _Config, name: str, folder: str, config: Mapping[str, Any], *, parameters: int
) -> tuple[ComponentSpec, ...]:
    """An encoder of pictures [B, C, H, W] and a decoder of latents [B, L, h, w].

    Args:
        vae: The autoencoder's config.
        name: Its name in ``model_index.json``.
        folder: Its folder in the checkpoint.
        config: Its ``config.json``, as it is.
        parameters: The encoder's outputs for each channel of the latents: 2 for means and
            log-variances, 1 for latents.
    """
    picture = ("batch", vae.in_channels, "height", "width")
    encoded = ("batch", parameters * vae.latent_channels, "latent_height", "latent_width")
    latent = ("batch", vae.latent_channels, "latent_height", "latent_width")
    decoded = ("batch", vae.out_channels, "height", "width")
    encoder = Signature(
        inputs=(floating("sample", *picture),), outputs=(floating("latent_parameters", *encoded),)
    )
    decoder = Signature(
        inputs=(floating("latent_sample", *latent),), outputs=(floating("sample", *decoded),)
    )
    pixels = {
        "batch": Dim(example=2),
        "height": Dim(multiple=vae.downscale, example=96, smallest=64),
        "width": Dim(multiple=vae.downscale, example=64, smallest=64),
    }
    small = {
        "batch": Dim(example=2),
        "latent_height": Dim(example=96, smallest=64),
        "latent_width": Dim(example=64, smallest=64),
    }
    halves = (
        ("encoder", Role.LATENT_ENCODER, encoder, pixels),
        ("decoder", Role.LATENT_DECODER, decoder, small),
    )
    return tuple(
        ComponentSpec(
            name=f"{name}_{half}",
            role=role,
            class_name=vae.class_name,
            folder=folder,
            config=config,
            signature=signature,
            dims=dims,
            upcast=bool(config.get("force_upcast")),
        )
        for half, role, signature, dims in halves
    )


def reads(spec: ComponentSpec, name: str) -> bool:
    """Whether a half reads a stored tensor: not those of the other one."""
    return not any(
        name.startswith(beginnings) for role, beginnings in _OF_ONE.items() if role != spec.role
    )


class Switches:
    """Diffusers' switches of an autoencoder; pipelines that run the model obey them."""

    use_tiling = False
    use_slicing = False

    def enable_tiling(
        self,
        use_tiling: bool = True,
        *,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: float | None = None,
        tile_sample_stride_width: float | None = None,
    ) -> None:
        """Decode and encode large pictures in tiles, of the size that the family has.

        The sizes of Diffusers' tiles, in pixels, change nothing, and a warning says so.
        """
        sizes = {
            "tile_sample_min_height": tile_sample_min_height,
            "tile_sample_min_width": tile_sample_min_width,
            "tile_sample_stride_height": tile_sample_stride_height,
            "tile_sample_stride_width": tile_sample_stride_width,
        }
        if given := [name for name, size in sizes.items() if size is not None]:
            warnings.warn(
                f"{', '.join(given)} of enable_tiling has no effect: tiles have the size that the "
                "models of this family are exported for.",
                stacklevel=2,
            )
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Decode and encode pictures as a whole."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Decode and encode pictures one by one."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode and encode the pictures of a batch together."""
        self.use_slicing = False
