"""Stable Diffusion's safety checker: CLIP's image encoder and two tables of concepts.

Rombach et al. released it with Stable Diffusion 1; Rando et al. 2022 (arXiv:2210.04610) describe it.
"""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="StableDiffusionSafetyChecker",
        library="stable_diffusion",
        config=f"{__name__}.description:SafetyCheckerConfig",
        describe=f"{__name__}.description:describe",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        names=f"{__name__}.description:current",
    ),
)
