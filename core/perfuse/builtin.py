"""What perfuse itself brings, found as a plugin's is: architectures, schedulers, pipeline classes."""

import importlib
import pkgutil
from collections.abc import Sequence

from perfuse.contract.architecture import Architecture
from perfuse.contract.hooks import PipelineManifest, hookimpl


@hookimpl
def perfuse_architectures() -> Sequence[Architecture]:
    from perfuse.models.registry import own

    return list(own())


@hookimpl
def perfuse_schedulers() -> dict[str, str]:
    from perfuse.schedulers import SCHEDULERS

    return dict(SCHEDULERS)


@hookimpl
def perfuse_pipelines() -> Sequence[PipelineManifest]:
    import perfuse.families

    modules = [
        importlib.import_module(f"perfuse.families.{module.name}")
        for module in pkgutil.iter_modules(perfuse.families.__path__)
    ]
    return [manifest for module in modules for manifest in module.PIPELINES]
