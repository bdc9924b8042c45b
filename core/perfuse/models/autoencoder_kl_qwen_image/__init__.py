"""``AutoencoderKLQwenImage``: an autoencoder of videos, here of single pictures."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="AutoencoderKLQwenImage",
        config=f"{__name__}.description:AutoencoderKLQwenImageConfig",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        reads="perfuse.models.autoencoder_halves:reads",
    ),
)
