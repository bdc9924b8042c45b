"""``HunyuanDiT2DModel``: the denoiser of Hunyuan-DiT."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="HunyuanDiT2DModel",
        config=f"{__name__}.description:HunyuanDiTConfig",
        describe=f"{__name__}.description:describe",
        fit=f"{__name__}.description:fit",
        host_inputs=f"{__name__}.description:host_inputs",
        aliases=f"{__name__}.original:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        attentions=f"{__name__}.description:attentions",
        perturb="perfuse.models.block_skipping:perturb",
    ),
)
