"""``UNet2DConditionModel``: the UNet of Stable Diffusion 1, 2, XL and of consistency models."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="UNet2DConditionModel",
        config=f"{__name__}.description:UNet2DConditionConfig",
        describe=f"{__name__}.description:describe",
        fit=f"{__name__}.description:fit",
        host_inputs=f"{__name__}.guidance:host_inputs",
        original=f"{__name__}.original:original",
        aliases=f"{__name__}.aliases:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        shallow=f"{__name__}.shallow:shallow",
        gated=f"{__name__}.gate:gated",
        perturb="perfuse.models.perturbed:perturb",
        image_prompts="perfuse.models.ip_adapter.unet:UNET",
        names="perfuse.models.names:current",
        beside_graph=("sample_size", "dropout"),
        in_half_precision=("upcast_attention",),
    ),
)
