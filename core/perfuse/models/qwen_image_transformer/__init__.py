"""``QwenImageTransformer2DModel``: the transformer of Qwen-Image."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="QwenImageTransformer2DModel",
        config=f"{__name__}.description:QwenImageConfig",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        latent_spec=f"{__name__}.description:QwenImageLatents",
        host_inputs=f"{__name__}.description:host_inputs",
        original=f"{__name__}.original:original",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        attentions=f"{__name__}.description:attentions",
    ),
)
