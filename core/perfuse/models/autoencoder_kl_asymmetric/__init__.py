"""``AsymmetricAutoencoderKL``: a larger decoder, which sees what inpainting keeps (Zhu et al. 2023)."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="AsymmetricAutoencoderKL",
        config=f"{__name__}.description:AsymmetricConfig",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        host_inputs=f"{__name__}.nothing_kept:host_inputs",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        reads="perfuse.models.autoencoder_halves:reads",
    ),
)
