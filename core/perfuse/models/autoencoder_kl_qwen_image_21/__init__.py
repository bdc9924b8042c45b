"""``AutoencoderKLQwenImage21``: Qwen-Image 2.1's autoencoder of pictures with transparency."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="AutoencoderKLQwenImage21",
        config=f"{__name__}.description:AutoencoderKLQwenImage21Config",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        reads="perfuse.models.autoencoder_halves:reads",
    ),
)
