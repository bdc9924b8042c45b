"""``UNet2DModel``: the unconditional UNet of DDPM and DDIM."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="UNet2DModel",
        config=f"{__name__}.description:UNet2DConfig",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        build=f"{__name__}.network:build",
        names="perfuse.models.names:current",
        beside_graph=("sample_size", "dropout"),
        wrap=f"{__name__}.network:wrap",
    ),
)
