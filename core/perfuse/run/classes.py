"""Pipeline classes by name, made of the manifests that are installed."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from perfuse import _diffusers
from perfuse.contract.hooks import PipelineManifest
from perfuse.contract.spec import PipelineSpec
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.run.plan import parts_of
from perfuse.sources.checkpoint import corrected

__all__ = ["as_class", "family_of", "manifest_of", "named_class", "relative"]

_P = TypeVar("_P")


class _Named(type):
    """Of the classes below: they also have the static methods of Diffusers' class of their name."""

    def __getattr__(cls, name: str) -> Any:
        for one in cls.__mro__:
            ours = _made.get(one.__name__) is one
            found = _diffusers.method_of(one.__name__, name) if ours else None
            if isinstance(found, staticmethod):
                return found.__func__
        raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")


_made: dict[str, type] = {}
#: The end of a class's name: its task, as Diffusers writes it.
_END = re.compile(r"(Img2Img|Inpaint)?Pipeline$")
#: The number of one of several components of a kind: ``controlnet_1``.
_NUMBER = re.compile(r"_\d+$")


def named_class(base: type[_P], name: str) -> type[_P]:
    """The subclass of a pipeline class for a manifest's name: the same one each time."""
    if name not in _made:
        about = f"A ``{base.__name__}`` with the tasks, components and defaults of a ``{name}``."
        members = {"__doc__": about, "__module__": "perfuse.run.pipelines"}
        _made[name] = _Named(name, (base,), members)
    return _made[name]


def manifest_of(kind: type) -> PipelineManifest | None:
    """The manifest of a class or of the nearest of its bases; ``None`` if none has one."""
    known: Mapping[str, PipelineManifest] = host().pipelines()
    ours = (one.__name__ for one in kind.__mro__ if _made.get(one.__name__) is one)
    return next((known[name] for name in ours if name in known), None)


def family_of(class_name: str) -> str:
    """A class's name without its task: ``StableDiffusionXL`` for its Img2Img and Inpaint too."""
    return _END.sub("", class_name)


def relative(class_name: str, task: str) -> str:
    """The class for a task in the family of a class: one of the tasks below.

    Raises:
        InputError: no installed class of the family has this task.
    """
    known = host().pipelines()
    family = family_of(class_name)
    wanted = f"{family}{_WORDS[task]}Pipeline"
    if wanted in known and task in known[wanted].tasks:
        return wanted
    fitting = [n for n, one in known.items() if family_of(n) == family and task in one.tasks]
    if not fitting:
        raise InputError(
            f"{task} was asked for; {class_name} has no relative that does it. Its family has "
            f"{', '.join(n for n in known if family_of(n) == family)}."
        )
    return fitting[0]


#: Task to the word in the names of its classes.
_WORDS = {"text-to-image": "", "image-to-image": "Img2Img", "inpainting": "Inpaint"}


def as_class(spec: PipelineSpec, manifest: PipelineManifest, *, model: str) -> PipelineSpec:
    """The spec of a model opened as another class than its own.

    Raises:
        InputError: the model lacks a component of the class, or has others.
    """
    if spec.class_name == manifest.class_name:
        return spec
    there = {*parts_of(spec), *spec.tokenizers, *spec.schedulers, "scheduler"}
    missing = [name for name in manifest.needs if name not in {*there, *spec.processors}]
    taken = {*manifest.needs, *manifest.optional, *manifest.unused, "scheduler"}
    alike = family_of(spec.class_name) == family_of(manifest.class_name)
    # ``controlnet_1`` is one of several that were added.
    others = [n for n in sorted(there - taken) if _NUMBER.sub("", n) not in manifest.addable]
    if missing or (others and not alike):
        said = f"has {', '.join(others)}, which that class does not take"
        if missing:
            said = f"has no {', '.join(missing)}"
        raise InputError(
            f"{model} was to be opened as {manifest.class_name}; it is a {spec.class_name}: it {said}. "
            f"Open it as {spec.class_name}, or by DiffusionPipeline."
        )
    return dataclasses.replace(
        spec,
        class_name=manifest.class_name,
        tasks=tuple(manifest.tasks),
        scheduler=corrected(spec.scheduler, manifest) if spec.scheduler else spec.scheduler,
    )
