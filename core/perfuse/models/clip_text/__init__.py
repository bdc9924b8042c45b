"""CLIP's text encoders, as Transformers saves them (Radford et al. 2021, arXiv:2103.00020)."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="CLIPTextModel",
        library="transformers",
        config=f"{__name__}.description:ClipTextConfig",
        describe=f"{__name__}.description:describe",
        fit=f"{__name__}.description:fit",
        original=f"{__name__}.original:original",
        aliases=f"{__name__}.aliases:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        names=f"{__name__}.description:current",
        hidden_states=f"{__name__}.description:with_hidden_states",
        beside_graph=("projection_dim",),
    ),
    Architecture(
        class_name="CLIPTextModelWithProjection",
        library="transformers",
        config=f"{__name__}.description:ClipTextConfig",
        describe=f"{__name__}.description:describe_projected",
        fit=f"{__name__}.description:fit",
        original=f"{__name__}.original:original_projected",
        aliases=f"{__name__}.aliases:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        names=f"{__name__}.description:current",
        hidden_states=f"{__name__}.description:with_hidden_states",
    ),
)
