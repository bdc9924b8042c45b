"""The pipeline classes by name: ``from perfuse import StableDiffusionImg2ImgPipeline``.

There is one for each manifest that is installed, core's and plugins', and, where Diffusers is installed, one
for each other pipeline that it has. ``__all__`` has core's: what a plugin
declares may itself import all that perfuse has.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfuse.run.pipeline import DiffusionPipeline


def __getattr__(name: str) -> "type[DiffusionPipeline | Any] | list[str]":
    if name == "__all__":
        from perfuse.builtin import perfuse_pipelines

        return sorted(one.class_name for one in perfuse_pipelines())
    from perfuse.plugins import host

    if name.endswith("Pipeline") and name in host().pipelines():
        from perfuse.run.classes import named_class
        from perfuse.run.pipeline import DiffusionPipeline

        return named_class(DiffusionPipeline, name)
    bridged = None
    if name.endswith("Pipeline"):
        from perfuse.bridge.classes import bridged_class

        bridged = bridged_class(name)
    if bridged is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return bridged


def __dir__() -> list[str]:
    names: Any = __getattr__("__all__")
    return list(names)
