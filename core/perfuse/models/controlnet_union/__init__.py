"""``ControlNetUnionModel``: one ControlNet for pictures of several kinds, several at once."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="ControlNetUnionModel",
        config=f"{__name__}.description:ControlNetUnionConfig",
        describe=f"{__name__}.description:describe",
        fit=f"{__name__}.description:fit",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
    ),
    Architecture(
        class_name="MultiControlNetUnionModel",
        each="ControlNetUnionModel",
        config=f"{__name__}.description:ControlNetUnionConfig",
        describe=f"{__name__}.description:describe",
        build=f"{__name__}.network:build",
    ),
)
