"""SigLIP's image encoder, as Transformers saves it (Zhai et al. 2023, arXiv:2303.15343)."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="SiglipVisionModel",
        library="transformers",
        config=f"{__name__}.description:SiglipVisionConfig",
        describe=f"{__name__}.description:describe",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        names=f"{__name__}.description:current",
    ),
)
