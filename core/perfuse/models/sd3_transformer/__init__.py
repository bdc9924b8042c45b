"""``SD3Transformer2DModel``: the denoiser of Stable Diffusion 3 and 3.5."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="SD3Transformer2DModel",
        config=f"{__name__}.description:SD3Config",
        describe=f"{__name__}.description:describe",
        host_inputs=f"{__name__}.description:host_inputs",
        original=f"{__name__}.original:original",
        aliases=f"{__name__}.original:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        attentions=f"{__name__}.description:attentions",
        called=f"{__name__}.description:called",
        perturb="perfuse.models.block_skipping:perturb",
        image_prompts="perfuse.models.ip_adapter.sd3:SD3",
    ),
)
