"""``PixArtTransformer2DModel``: the denoiser of PixArt-α and PixArt-Σ."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="PixArtTransformer2DModel",
        config=f"{__name__}.description:PixArtConfig",
        describe=f"{__name__}.description:describe",
        host_inputs=f"{__name__}.description:host_inputs",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        attentions=f"{__name__}.description:attentions",
        perturb="perfuse.models.block_skipping:perturb",
    ),
)
