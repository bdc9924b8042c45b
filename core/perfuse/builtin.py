"""What core itself brings, through the hooks that everyone uses: found, not listed.

A folder of ``perfuse.models`` that has ``ARCHITECTURES`` brings these, a file of
``perfuse.families`` that has ``PIPELINES`` those, and a file of ``perfuse.transforms`` its own. None of them imports torch.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perfuse.contract.architecture import Architecture
from perfuse.contract.hooks import PipelineManifest, TransformManifest, hookimpl


@hookimpl
def perfuse_architectures() -> Sequence[Architecture]:
    """The classes of checkpoints that core builds."""
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
def perfuse_pipelines() -> Sequence[PipelineManifest]:
    """The pipeline classes that core runs."""
    return tuple(_gathered("perfuse.families", "PIPELINES", packages=False))


def _gathered(package: str, attribute: str, *, packages: bool) -> Iterator[Any]:
    """What the folders, or the files, of a package have under a name, in their order."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    for module in sorted(pkgutil.iter_modules(places or []), key=lambda module: module.name):
        if module.ispkg == packages:
            yield from getattr(importlib.import_module(f"{package}.{module.name}"), attribute, ())
