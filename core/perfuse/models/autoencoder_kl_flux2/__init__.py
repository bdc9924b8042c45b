"""``AutoencoderKLFlux2``: FLUX.2's autoencoder, whose latents are normalised by its own statistics."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="AutoencoderKLFlux2",
        config=f"{__name__}.description:AutoencoderKLFlux2Config",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        latent_spec=f"{__name__}.description:PatchLatents",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        reads="perfuse.models.autoencoder_halves:reads",
    ),
)
