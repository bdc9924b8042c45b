"""``Flux2Transformer2DModel``: the transformer of FLUX.2."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="Flux2Transformer2DModel",
        config=f"{__name__}.description:Flux2Config",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        latent_spec=f"{__name__}.description:Flux2Latents",
        host_inputs=f"{__name__}.description:host_inputs",
        original=f"{__name__}.original:original",
        aliases=f"{__name__}.original:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
    ),
)
