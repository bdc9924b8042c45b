"""CLIP's image encoder, as Transformers saves it (Radford et al. 2021, arXiv:2103.00020)."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="CLIPVisionModelWithProjection",
        library="transformers",
        config=f"{__name__}.description:ClipVisionConfig",
        describe=f"{__name__}.description:describe",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        names=f"{__name__}.description:current",
    ),
)
