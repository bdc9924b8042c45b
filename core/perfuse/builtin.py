"""The plugin of perfuse's core: its own models, schedulers and pipelines, by the public hooks.

They are found, not listed here: each folder of ``perfuse.models`` with ``ARCHITECTURES``, each file
of ``perfuse.families`` with ``PIPELINES``, each file of ``perfuse.transforms`` with ``TRANSFORMS``.
None of these imports torch.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perfuse.contract.architecture import Architecture
from perfuse.contract.hooks import GuiderManifest, PipelineManifest, TransformManifest, hookimpl


@hookimpl
def perfuse_architectures() -> Sequence[Architecture]:
    """The model classes that core builds."""
    return tuple(_gathered("perfuse.models", "ARCHITECTURES", packages=True))


@hookimpl
def perfuse_schedulers() -> Mapping[str, str]:
    """The scheduler classes, by name."""
    return dict(importlib.import_module("perfuse.schedulers").SCHEDULERS)


@hookimpl
def perfuse_transforms() -> Sequence[TransformManifest]:
    """The transforms that core brings."""
    return tuple(_gathered("perfuse.transforms", "TRANSFORMS", packages=False))


@hookimpl
def perfuse_guiders() -> Sequence[GuiderManifest]:
    """The guidance methods, each by the name of its file."""
    room = "perfuse.tasks.guiders"
    return [
        GuiderManifest(name=file.replace("_", "-"), impl=f"{room}.{file}:{class_name}")
        for file, classes in importlib.import_module(room).FILES.items()
        for class_name in classes
    ]


@hookimpl
def perfuse_pipelines() -> Sequence[PipelineManifest]:
    """The pipeline classes that core runs."""
    complete = importlib.import_module("perfuse.families.arguments").with_arguments
    found = _gathered("perfuse.families", "PIPELINES", packages=False)
    return tuple(complete(manifest) for manifest in found)


def _gathered(package: str, attribute: str, *, packages: bool) -> Iterator[Any]:
    """The items of ``attribute`` in each subpackage (or module) of a package that has it.

    Raises:
        ImportError: there is nothing in it, as where its folder cannot be read.
    """
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    modules = sorted(pkgutil.iter_modules(places or []), key=lambda module: module.name)
    if places and not modules:
        raise ImportError(f"no module of {package} is found in {places}")
    for module in modules:
        if module.ispkg == packages:
            yield from getattr(importlib.import_module(f"{package}.{module.name}"), attribute, ())
