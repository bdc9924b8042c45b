"""The tasks of a pipeline, and which one a call runs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from perfuse.contract.fields import read_fields, split_named
from perfuse.contract.guider import Guider
from perfuse.contract.hooks import PipelineManifest
from perfuse.contract.spec import PipelineSpec
from perfuse.contract.steps import Task
from perfuse.errors import CheckpointError, InputError, PluginError
from perfuse.plugins import host, missing_modules, resolve
from perfuse.plugins.importing import guarded

__all__ = ["choose", "find_guider", "like_diffusers", "pipeline_manifest", "tasks_of"]


def pipeline_manifest(class_name: str) -> PipelineManifest:
    """The manifest of a pipeline class.

    Raises:
        CheckpointError: no plugin brings the class.
    """
    known = host().pipelines()
    if class_name not in known:
        raise CheckpointError(
            f"The pipeline is a {class_name}, which perfuse does not know; it knows "
            f"{', '.join(known)}. Install the plugin that brings it: hook perfuse_pipelines."
        )
    return known[class_name]


def tasks_of(spec: PipelineSpec) -> dict[str, Task]:
    """The tasks of a pipeline by name, with the defaults of its class.

    Raises:
        CheckpointError: no plugin brings the pipeline's class.
        PluginError: the task that its plugin names cannot be loaded.
    """
    manifest = pipeline_manifest(spec.class_name)
    return {
        name: _load(reference, spec.class_name).with_defaults(manifest.defaults)
        for name, reference in manifest.tasks.items()
    }


def _load(reference: str, class_name: str) -> Task:
    with guarded(
        lambda why: PluginError(
            f"The task of {class_name} is {reference}; loading it raised {why}. Update or uninstall "
            "its plugin."
        )
    ):
        task = resolve(reference)
    if not isinstance(task, Task):
        raise PluginError(
            f"The task of {class_name} is {reference}, which is not a Task. Update or uninstall "
            "its plugin."
        )
    return task


def choose(tasks: Mapping[str, Task], given: Mapping[str, Any], asked: str | None = None) -> Task:
    """The task to run: the one named, else the one whose required inputs are given.

    Of several that fit, the one with the most required inputs runs. If none fits, the first is
    returned; running it raises an error that names the missing or unknown inputs.

    Raises:
        InputError: there is no task named ``asked``.
    """
    if asked is not None:
        if asked not in tasks:
            raise InputError(f"Task {asked!r} was asked for; this pipeline has {', '.join(tasks)}.")
        return tasks[asked]
    there = {name for name, value in given.items() if value is not None}
    fitting = [t for t in tasks.values() if t.required <= there <= set(t.inputs)]
    return max(fitting or list(tasks.values())[:1], key=lambda task: len(task.required & there))


def find_guider(text: str) -> Guider:
    """The guider that ``NAME`` or ``NAME:key=value,key=value`` names.

    Raises:
        InputError: no plugin offers it, a package that it needs is missing, or it has no such option.
        PluginError: it cannot be imported, or is no guider.
    """
    name, given = split_named(text, what="Guider")
    known = host().guiders()
    if name not in known:
        raise InputError(f"Guider {name!r} was asked for; there are {', '.join(sorted(known))}.")
    manifest = known[name]
    if missing := missing_modules(manifest.requires):
        raise InputError(
            f"Guider {name!r} was asked for; {', '.join(missing)} is missing. "
            f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
        )
    with guarded(
        lambda why: PluginError(
            f"Guider {name!r} is {manifest.impl}; loading it raised {why}. Update or uninstall its "
            "plugin."
        )
    ):
        kind: Any = resolve(manifest.impl)
    if not (isinstance(kind, type) and issubclass(kind, Guider)):
        raise PluginError(f"Guider {name!r} is {manifest.impl}, which is not a Guider.")
    return read_fields(kind, given, of=f"Guider {name!r}")


def like_diffusers(guider: Any) -> Guider | None:
    """Ours of the same name and settings as a guider of Diffusers; ``None`` for anything else.

    Raises:
        InputError: it has settings that ours cannot meet.
    """
    config, name = getattr(guider, "config", None), type(guider).__name__
    fitting = (one for one in host().guiders().values() if one.impl.rpartition(":")[2] == name)
    manifest = next(fitting, None)
    if manifest is None or config is None or not type(guider).__module__.startswith("diffusers."):
        return None
    kind: Any = resolve(manifest.impl)
    settings = {**config, "enabled": getattr(guider, "_enabled", True)}
    fields = [field.name for field in dataclasses.fields(kind)]
    made: Guider = kind(**{name: settings[name] for name in fields if name in settings})
    return made
