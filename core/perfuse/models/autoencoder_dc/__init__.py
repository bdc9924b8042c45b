"""``AutoencoderDC``: Sana's autoencoder, of 32 pixels a latent and more."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="AutoencoderDC",
        config=f"{__name__}.description:AutoencoderDCConfig",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        reads="perfuse.models.autoencoder_halves:reads",
        beside_graph=("scaling_factor",),
    ),
)
