"""The normaliser of CLIP's image embeddings in Stable unCLIP: a mean and a deviation each number."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="StableUnCLIPImageNormalizer",
        library="stable_diffusion",
        config=f"{__name__}.description:ImageNormalizerConfig",
        describe=f"{__name__}.description:describe",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
    ),
)
