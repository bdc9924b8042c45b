"""``QwenImage21Transformer2DModel``: the transformer of Qwen-Image 2.1."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="QwenImage21Transformer2DModel",
        config=f"{__name__}.description:QwenImage21Config",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        latent_spec=f"{__name__}.description:QwenImage21Latents",
        host_inputs=f"{__name__}.description:host_inputs",
        original=f"{__name__}.original:original",
        aliases=f"{__name__}.original:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        perturb="perfuse.models.block_skipping:perturb",
    ),
)
