"""``AutoencoderTiny``: a small autoencoder for quick pictures and previews (TAESD, Bohan 2023)."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="AutoencoderTiny",
        config=f"{__name__}.description:AutoencoderTinyConfig",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        reads="perfuse.models.autoencoder_halves:reads",
    ),
)
