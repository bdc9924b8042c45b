"""``ControlNetModel``: a copy of a UNet's first half that reads a picture of what to draw."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="ControlNetModel",
        config=f"{__name__}.description:ControlNetConfig",
        describe=f"{__name__}.description:describe",
        fit=f"{__name__}.description:fit",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        names="perfuse.models.names:current",
    ),
    Architecture(
        class_name="MultiControlNetModel",
        each="ControlNetModel",
        config=f"{__name__}.description:ControlNetConfig",
        describe=f"{__name__}.description:describe",
        build=f"{__name__}.network:build",
    ),
)
