"""``AutoencoderKL``: the autoencoder of Stable Diffusion, of Flux and of many more."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="AutoencoderKL",
        config=f"{__name__}.description:AutoencoderKLConfig",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        latent_spec=f"{__name__}.latents:ScaledLatents",
        original=f"{__name__}.original:original",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
    ),
)
