"""``FluxTransformer2DModel``: the denoiser of FLUX.1 (Black Forest Labs 2024)."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="FluxTransformer2DModel",
        config=f"{__name__}.description:FluxConfig",
        describe=f"{__name__}.description:describe",
        latents=f"{__name__}.description:latents",
        latent_spec=f"{__name__}.description:FluxLatents",
        host_inputs=f"{__name__}.description:host_inputs",
        original=f"{__name__}.original:original",
        aliases=f"{__name__}.original:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        attentions=f"{__name__}.description:attentions",
        called=f"{__name__}.description:called",
        perturb="perfuse.models.block_skipping:perturb",
        image_prompts="perfuse.models.ip_adapter.flux:FLUX",
    ),
)
