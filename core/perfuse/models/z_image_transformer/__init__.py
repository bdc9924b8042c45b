"""``ZImageTransformer2DModel``: the single-stream transformer of Z-Image."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="ZImageTransformer2DModel",
        config=f"{__name__}.description:ZImageTransformerConfig",
        describe=f"{__name__}.description:describe",
        host_inputs=f"{__name__}.description:host_inputs",
        original=f"{__name__}.original:original",
        aliases=f"{__name__}.original:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        first_blocks=f"{__name__}.description:first_blocks",
        attentions=f"{__name__}.description:attentions",
        called=f"{__name__}.description:called",
    ),
)
