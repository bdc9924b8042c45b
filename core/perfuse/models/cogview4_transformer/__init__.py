"""``CogView4Transformer2DModel``: the denoiser of CogView 4."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="CogView4Transformer2DModel",
        config=f"{__name__}.description:CogView4Config",
        describe=f"{__name__}.description:describe",
        host_inputs=f"{__name__}.description:host_inputs",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        perturb="perfuse.models.block_skipping:perturb",
    ),
)
