"""The pipeline classes by name: ``from perfuse import StableDiffusionImg2ImgPipeline``.

There is one for each manifest that is installed, core's and plugins'.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfuse.run.pipeline import DiffusionPipeline


def __getattr__(name: str) -> "type[DiffusionPipeline] | list[str]":
    from perfuse.plugins import host

    if name == "__all__":
        return sorted(host().pipelines())
    if not name.endswith("Pipeline") or name not in host().pipelines():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from perfuse.run.classes import named_class
    from perfuse.run.pipeline import DiffusionPipeline

    return named_class(DiffusionPipeline, name)


def __dir__() -> list[str]:
    names: Any = __getattr__("__all__")
    return list(names)
