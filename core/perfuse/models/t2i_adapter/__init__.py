"""``T2IAdapter``: a small network that reads a picture of what to draw, once a picture."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="T2IAdapter",
        config=f"{__name__}.description:T2IAdapterConfig",
        describe=f"{__name__}.description:describe",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
    ),
    Architecture(
        class_name="MultiAdapter",
        each="T2IAdapter",
        config=f"{__name__}.description:T2IAdapterConfig",
        describe=f"{__name__}.description:describe",
        build=f"{__name__}.network:build",
    ),
)
