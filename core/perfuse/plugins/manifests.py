"""Answers of plugins to hooks: checking them, and turning them into plain data and back."""

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeAlias

from perfuse.contract.architecture import Architecture
from perfuse.contract.hooks import (
    BackendManifest,
    ExporterManifest,
    GuiderManifest,
    PipelineManifest,
    ReaderManifest,
    SourceManifest,
    TransformManifest,
    check_fields,
)
from perfuse.errors import PluginError

__all__ = ["HOOKS", "Answer", "from_plain", "kind_of", "read_answer", "to_plain"]

#: Manifests; or, for ``perfuse_schedulers``, class name to import path.
Answer: TypeAlias = tuple[Any, ...] | Mapping[str, str]

_KINDS: Mapping[str, type] = MappingProxyType(
    {
        "perfuse_backends": BackendManifest,
        "perfuse_exporters": ExporterManifest,
        "perfuse_pipelines": PipelineManifest,
        "perfuse_transforms": TransformManifest,
        "perfuse_readers": ReaderManifest,
        "perfuse_guiders": GuiderManifest,
        "perfuse_sources": SourceManifest,
        "perfuse_architectures": Architecture,
    }
)
#: The most manifests of a hook, and how much of a wrong answer is shown, in characters.
_MOST, _SHOWN = 1000, 200
#: Every hook.
HOOKS = (*_KINDS, "perfuse_schedulers")


def kind_of(hook: str) -> type:
    """The class of the manifests that a hook returns."""
    return _KINDS[hook]


def read_answer(hook: str, answer: Any) -> Answer:
    """Check a plugin's answer to a hook, and return it.

    Raises:
        PluginError: it is not what the hook returns, or a manifest's field is not what it should be.
    """
    if hook == "perfuse_schedulers":
        return _read_schedulers(answer)
    kind = kind_of(hook)
    listed = isinstance(answer, Iterable)
    manifests = tuple(islice(answer, _MOST + 1)) if listed else (answer,)
    wrong = [manifest for manifest in manifests if not isinstance(manifest, kind)]
    if wrong or not listed:
        shown = repr(wrong[0] if wrong else answer)[:_SHOWN]
        raise PluginError(f"returned {shown}, not a list of {kind.__name__}")
    if len(manifests) > _MOST:
        raise PluginError(f"returned more than {_MOST} of {kind.__name__}")
    for manifest in manifests:
        check_fields(manifest)
    return manifests


def _read_schedulers(answer: Any) -> Mapping[str, str]:
    fits = isinstance(answer, Mapping) and all(
        isinstance(text, str) for pair in answer.items() for text in pair
    )
    if not fits:
        shown = repr(answer)[:_SHOWN]
        raise PluginError(f"returned {shown}, not a dict of class name to module:Class")
    return dict(answer)


def to_plain(value: Any) -> Any:
    """A manifest, or a value in one, as JSON can hold it.

    Raises:
        PluginError: it holds something that is no plain data.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple):
        return {"tuple": [to_plain(one) for one in value]}
    if isinstance(value, list):
        return {"list": [to_plain(one) for one in value]}
    if isinstance(value, Mapping):
        return {"dict": [[to_plain(name), to_plain(one)] for name, one in value.items()]}
    kind = type(value)
    if dataclasses.is_dataclass(value) and kind.__module__.startswith("perfuse."):
        fields = {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    raise PluginError(
        f"returned a manifest that holds {repr(value)[:_SHOWN]}; a manifest is plain data: numbers, texts, "
        "tuples, dicts, and classes named by text"
    )


def from_plain(data: Any) -> Any:
    """Undo `to_plain`.

    Raises:
        PluginError: it is not what `to_plain` returns.
    """
    if not isinstance(data, dict):
        if isinstance(data, list):
            raise PluginError("a list stands where a manifest was expected")
        return data
    match data:
        case {"tuple": list(values)}:
            return tuple(from_plain(one) for one in values)
        case {"list": list(values)}:
            return [from_plain(one) for one in values]
        case {"dict": list(pairs)}:
            return {from_plain(name): from_plain(one) for name, one in pairs}
        case {"class": str(where), "fields": dict(fields)} if where.startswith("perfuse."):
            module, _, name = where.partition(":")
            kind = getattr(importlib.import_module(module), name, None)
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                return kind(**{name: from_plain(one) for name, one in fields.items()})
    raise PluginError(f"{data!r} is no part of a manifest")
