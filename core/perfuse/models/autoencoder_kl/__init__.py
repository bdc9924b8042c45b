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
        reads="perfuse.models.autoencoder_halves:reads",
        names="perfuse.models.names:current",
        beside_graph=("sample_size", "scaling_factor", "shift_factor", "force_upcast")
        + ("latents_mean", "latents_std"),
    ),
)
