"""``ChromaTransformer2DModel``: the denoiser of Chroma, made of FLUX.1 schnell's."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="ChromaTransformer2DModel",
        config=f"{__name__}.description:ChromaConfig",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        latent_spec=f"{__name__}.description:ChromaLatents",
        host_inputs=f"{__name__}.description:host_inputs",
        original=f"{__name__}.original:original",
        aliases=f"{__name__}.original:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        attentions=f"{__name__}.description:attentions",
        perturb="perfuse.models.block_skipping:perturb",
        image_prompts="perfuse.models.ip_adapter.flux:FLUX",
    ),
)
