"""What a plugin may implement: the hooks, the manifests they return, what is refused.

A manifest is plain data that names classes by string; nothing here imports an engine.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

import pluggy

from perfuse.errors import PluginError

if TYPE_CHECKING:
    from perfuse.contract.architecture import Architecture

__all__ = [
    "API_VERSION",
    "BackendManifest",
    "ExporterManifest",
    "GuiderManifest",
    "Hooks",
    "PipelineManifest",
    "ReaderManifest",
    "SourceManifest",
    "TransformManifest",
    "check_fields",
    "check_hooks",
    "hookimpl",
    "out_of_range",
]

#: The version of the contract in ``backend.py`` and of the hooks below. Its major is in the name of
#: the entry points' group.
API_VERSION = "1.0"

hookspec = pluggy.HookspecMarker("perfuse")
#: Marks a plugin's hook: ``@hookimpl def perfuse_backends(): return [BackendManifest(…)]``.
hookimpl = pluggy.HookimplMarker("perfuse")


@dataclass(frozen=True, kw_only=True)
class BackendManifest:
    """A backend, described without importing it."""

    #: What a person types before the colon.
    name: str
    #: ``"module:Class"``, a subclass of ``perfuse.Backend``.
    impl: str
    #: Artifact formats that it loads; empty where it runs a checkpoint's torch modules.
    formats: tuple[str, ...] = ()
    #: Top-level modules that the engine needs; looked for, not imported.
    requires: tuple[str, ...] = ()
    #: Distributions that own the same files: no two of them may be installed.
    conflicts: tuple[str, ...] = ()
    #: The command that installs what it needs.
    install: str = ""
    summary: str = ""
    #: Where its engine runs, as ``sys.platform`` calls it: ``("darwin",)``; empty for everywhere.
    platforms: tuple[str, ...] = ()
    #: The backend whose programs it computes without that one's hardware. What it runs is
    #: *interpreted*, never *executed*.
    interprets: str = ""
    #: ``"module:LIMITS"``, a ``perfuse.Limits``: what its devices can take, as data
    #: that imports no engine. For ``perfuse inspect --for``.
    limits: str = ""
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExporterManifest:
    """An exporter, described without importing it."""

    #: What a person types after ``--to``.
    format: str
    #: ``"module:Class"``, a subclass of ``perfuse.Exporter``.
    impl: str
    requires: tuple[str, ...] = ()
    install: str = ""
    summary: str = ""
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


@dataclass(frozen=True, kw_only=True)
class PipelineManifest:
    """A pipeline class that a checkpoint's ``model_index.json`` can name."""

    class_name: str
    #: Task name to ``"module:TASK"``, a ``perfuse.Task``. A call runs the one that the inputs given
    #: fit, and the first where several do.
    tasks: Mapping[str, str]
    #: What such a checkpoint cannot do without.
    needs: tuple[str, ...]
    #: Parts that such a checkpoint may have and that no task here runs.
    unused: tuple[str, ...] = ()
    #: Inputs of its tasks that have another default here.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: What Diffusers puts in place of an outdated setting of the scheduler, where it has that
    #: setting with another value.
    corrects: Mapping[str, Any] = field(default_factory=dict)
    #: The scheduler class that the pipeline turns any other into.
    scheduler: str | None = None


@dataclass(frozen=True, kw_only=True)
class TransformManifest:
    """An acceleration that rewrites components or the loop, described without importing it."""

    #: What a person types after ``--transform``.
    name: str
    #: ``"module:Class"``, a subclass of ``perfuse.Transform``.
    impl: str
    requires: tuple[str, ...] = ()
    install: str = ""
    summary: str = ""
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


@dataclass(frozen=True, kw_only=True)
class GuiderManifest:
    """A way of guidance, described without importing it."""

    #: What a person types after ``--guider``.
    name: str
    #: ``"module:Class"``, a subclass of ``perfuse.Guider``.
    impl: str
    requires: tuple[str, ...] = ()
    install: str = ""
    summary: str = ""
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


@dataclass(frozen=True, kw_only=True)
class SourceManifest:
    """A kind of source that is no folder and no Hub repository, described without importing it."""

    #: What a person writes before a colon: ``--model NAME:REST``. Two letters at least.
    name: str
    #: ``"module:function"``: ``(rest) -> perfuse.Source``.
    impl: str
    requires: tuple[str, ...] = ()
    install: str = ""
    summary: str = ""
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReaderManifest:
    """A layout of folders that another tool writes, described without importing its reader."""

    #: The layout's name, for messages: ``"apple"``.
    name: str
    #: ``"module:Class"``, a subclass of ``perfuse.Reader``.
    impl: str
    #: Globs relative to a folder; one that matches says that the folder has this layout.
    patterns: tuple[str, ...]
    #: Whether such a folder has a ``model_index.json``, as a checkpoint has.
    indexed: bool = False
    requires: tuple[str, ...] = ()
    install: str = ""
    summary: str = ""
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


class Hooks:
    """What a plugin may implement; each hook returns manifests, and takes nothing."""

    @hookspec
    def perfuse_backends(self) -> Sequence[BackendManifest]:  # type: ignore[empty-body]
        """Backends."""

    @hookspec
    def perfuse_exporters(self) -> Sequence[ExporterManifest]:  # type: ignore[empty-body]
        """Exporters."""

    @hookspec
    def perfuse_architectures(self) -> "Sequence[Architecture]":  # type: ignore[empty-body]
        """Classes of a checkpoint that the plugin can build."""

    @hookspec
    def perfuse_schedulers(self) -> dict[str, str]:  # type: ignore[empty-body]
        """Scheduler class names, each with the ``"module:Class"`` that it is."""

    @hookspec
    def perfuse_pipelines(self) -> Sequence[PipelineManifest]:  # type: ignore[empty-body]
        """Pipeline classes of a checkpoint that the plugin can run."""

    @hookspec
    def perfuse_transforms(self) -> Sequence[TransformManifest]:  # type: ignore[empty-body]
        """Accelerations that rewrite a component or the loop."""

    @hookspec
    def perfuse_guiders(self) -> Sequence[GuiderManifest]:  # type: ignore[empty-body]
        """Ways of guidance: which branches run at a step, and how they are combined."""

    @hookspec
    def perfuse_sources(self) -> Sequence[SourceManifest]:  # type: ignore[empty-body]
        """Kinds of sources, each opened by a name of its own."""

    @hookspec
    def perfuse_readers(self) -> Sequence[ReaderManifest]:  # type: ignore[empty-body]
        """Layouts of folders that other tools write."""


def check_fields(manifest: Any) -> None:
    """Refuse a manifest whose fields are not what they are declared to be.

    Raises:
        PluginError: it names the field. ``requires=("torch")`` is one text, not a tuple of texts.
    """
    hints = get_type_hints(type(manifest))  # resolved, also where annotations are texts
    for one in fields(manifest):
        value, check = getattr(manifest, one.name), _CHECKS.get(hints[one.name])
        if check is not None and not check[0](value):
            kind = type(manifest).__name__
            raise PluginError(f"returned a {kind} whose {one.name} is {value!r}, not {check[1]}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(text, str) for text in value)


def _is_named_texts(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(text, str) for pair in value.items() for text in pair)
    )


def _is_settings(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


#: The type that a field is declared to have to how it is checked, and what it should be.
_CHECKS: Mapping[Any, tuple[Callable[[object], bool], str]] = {
    str: (_is_text, "a text"),
    str | None: (lambda value: value is None or _is_text(value), "a text or None"),
    bool: (lambda value: isinstance(value, bool), "True or False"),
    tuple[str, ...]: (_is_texts, "a tuple of texts"),
    Mapping[str, str]: (_is_named_texts, "a dict of text to text that is not empty"),
    Mapping[str, Any]: (_is_settings, "a dict by text"),
}


def out_of_range(manifest: object) -> str | None:
    """Why a manifest's range of contracts leaves this one out; ``None`` where it does not.

    Raises:
        PluginError: the range is not one.
    """
    first, last = getattr(manifest, "api_min", None), getattr(manifest, "api_max", None)
    if first is not None and _version(first) > _version(API_VERSION):
        return f"it needs the contract {first} or a later one; this perfuse has {API_VERSION}"
    if last is not None and _version(last) < _version(API_VERSION):
        return f"it was made for the contract up to {last}; this perfuse has {API_VERSION}"
    return None


def _version(text: Any) -> tuple[int, int]:
    try:
        major, minor = (int(part) for part in text.split("."))
    except (AttributeError, ValueError) as exc:
        raise PluginError(f"asks for the contract {text!r}; write MAJOR.MINOR, as 1.0") from exc
    return major, minor


def check_hooks(plugin: ModuleType | object) -> None:
    """Refuse what pluggy would take in silence.

    Raises:
        PluginError: a hook that does not exist, or that pluggy would not call as it is meant.
    """
    known = sorted(name for name in vars(Hooks) if name.startswith("perfuse_"))
    found = False
    for name in dir(plugin):
        implementation = getattr(plugin, name, None)
        options = getattr(implementation, "perfuse_impl", None)  # what the marker leaves behind
        marked = isinstance(options, dict)
        if isinstance(implementation, ModuleType) or not (marked or name.startswith("perfuse_")):
            continue
        if name not in known:
            raise PluginError(f"hook {name} does not exist; hooks: {', '.join(known)}")
        if not callable(implementation):
            raise PluginError(f"hook {name} is {implementation!r}, not a function")
        _check_options(name, options if isinstance(options, dict) else {})
        _check_arguments(name, implementation)
        found = True
    if not found:
        raise PluginError(f"it has none of the hooks {', '.join(known)}")


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    refused = ("specname", "wrapper", "hookwrapper")
    if taken := [option for option in refused if options.get(option)]:
        raise PluginError(f"hook {name} is marked with {taken[0]}, which this host does not have")


def _check_arguments(name: str, implementation: Callable[..., Any]) -> None:
    for parameter in inspect.signature(implementation).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if parameter.default is not inspect.Parameter.empty:
            raise PluginError(
                f"hook {name} has a default for its argument {parameter.name!r}, which would "
                "never be filled; hooks take no arguments"
            )
        raise PluginError(f"hook {name} takes no arguments, this one takes [{parameter.name!r}]")
