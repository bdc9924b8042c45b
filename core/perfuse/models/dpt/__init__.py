"""DPT, which estimates the depth of a picture (Ranftl et al. 2021, arXiv:2103.13413)."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="DPTForDepthEstimation",
        library="transformers",
        config=f"{__name__}.description:DptConfig",
        describe=f"{__name__}.description:describe",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
    ),
)
