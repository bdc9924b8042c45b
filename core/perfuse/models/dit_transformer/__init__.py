"""``DiTTransformer2DModel``: the denoiser of DiT, which draws what a class is.

Its authors' checkpoints name ``Transformer2DModel``, which PixArt's first ones name, too.
"""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="DiTTransformer2DModel",
        config=f"{__name__}.description:DiTConfig",
        describe=f"{__name__}.description:describe",
        host_inputs=f"{__name__}.description:host_inputs",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        perturb="perfuse.models.block_skipping:perturb",
    ),
    Architecture(
        class_name="Transformer2DModel",
        describe=f"{__name__}.older:describe",
        build=f"{__name__}.network:build",
    ),
)
