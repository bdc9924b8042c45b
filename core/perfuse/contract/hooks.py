"""The hooks that a plugin may implement, the manifests they return, and their checks.

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

#: The version of the plugin contract: ``backend.py`` and the hooks below. Its major number is part
#: of the entry point group's name.
API_VERSION = "1.0"

hookspec = pluggy.HookspecMarker("perfuse")
#: Marks a plugin's hook: ``@hookimpl def perfuse_backends(): return [BackendManifest(…)]``.
hookimpl = pluggy.HookimplMarker("perfuse")


@dataclass(frozen=True, kw_only=True)
class BackendManifest:
    """A backend, described without importing it."""

    #: The name that a user types before the colon: ``"openvino"`` in ``openvino:GPU``.
    name: str
    #: ``"module:Class"``, a subclass of ``perfuse.Backend``.
    impl: str
    #: Artifact formats that it loads; empty if it runs a checkpoint's torch modules.
    formats: tuple[str, ...] = ()
    #: Top-level modules that the engine needs; the host looks for them without importing them.
    requires: tuple[str, ...] = ()
    #: Distributions that install the same files; at most one of them may be installed.
    conflicts: tuple[str, ...] = ()
    #: The command that installs what it needs.
    install: str = ""
    summary: str = ""
    #: Platforms that its engine runs on, as in ``sys.platform``: ``("darwin",)``; empty for all.
    platforms: tuple[str, ...] = ()
    #: The backend whose programs it evaluates without that backend's hardware. Reports then say
    #: *interpreted*, never *executed*.
    interprets: str = ""
    #: ``"module:LIMITS"``, a ``perfuse.Limits``: what its devices support. The module must not
    #: import the engine. For ``perfuse inspect --for``.
    limits: str = ""
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExporterManifest:
    """An exporter, described without importing it."""

    #: The name that a user types after ``--to``.
    format: str
    #: ``"module:Class"``, a subclass of ``perfuse.Exporter``.
    impl: str
    requires: tuple[str, ...] = ()
    install: str = ""
    summary: str = ""
    #: Whether it writes graphs without weights, too: ``export_graph`` and ``fill``.
    apart: bool = False
    #: Whether such a graph takes fixed sizes only: it serves other checkpoints, of the same sizes.
    fixed: bool = False
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


@dataclass(frozen=True, kw_only=True)
class PipelineManifest:
    """A pipeline class that a checkpoint's ``model_index.json`` can name."""

    class_name: str
    #: Task name to ``"module:TASK"``, a ``perfuse.Task``. Unless it names one, a call runs the task
    #: whose required inputs are given: of several the one with the most, then the first.
    tasks: Mapping[str, str]
    #: Entries of ``model_index.json`` that such a checkpoint must have.
    needs: tuple[str, ...]
    #: Entries that such a checkpoint may have, and that a user may add or leave out.
    optional: tuple[str, ...] = ()
    #: Entries that such a checkpoint may have and that no task here runs.
    unused: tuple[str, ...] = ()
    #: Entries that are described otherwise than their class is: name to ``"module:function"``, an
    #: ``Architecture.describe``.
    describes: Mapping[str, Any] = field(default_factory=dict)
    #: Components that a user may add to such a pipeline: name to the class that it is with one; or
    #: to several, by an input of the component, of which the last that it has counts.
    addable: Mapping[str, Any] = field(default_factory=dict)
    #: Defaults of this class for inputs of its tasks.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: Scheduler settings that Diffusers corrects in outdated checkpoints: each name with the value
    #: that replaces any other.
    corrects: Mapping[str, Any] = field(default_factory=dict)
    #: The same of models: an entry to the settings in its config.
    corrects_models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Attributes of the Diffusers class, for programs that read them or set others; steps read them by
    #: ``tools.attribute(name)``.
    attributes: Mapping[str, Any] = field(default_factory=dict)
    #: For prompts that are wrapped in the tokenizer's chat template: what the template is told,
    #: ``{"enable_thinking": False}``. Empty for prompts as they are.
    chat: Mapping[str, Any] = field(default_factory=dict)
    #: The scheduler class that replaces the checkpoint's, as the Diffusers pipeline does.
    scheduler: str | None = None
    #: The names of a call's arguments in Diffusers' order, for those given by position; by default
    #: the inputs of the first task.
    arguments: tuple[str, ...] = ()
    #: What a call returns with ``return_dict=False``.
    returns: tuple[str, ...] = ("images",)


@dataclass(frozen=True, kw_only=True)
class TransformManifest:
    """An acceleration that rewrites components or the loop, described without importing it."""

    #: The name that a user types after ``--transform``.
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
    """A guidance method, described without importing it."""

    #: The name that a user types after ``--guider``.
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
    """A kind of source other than a folder or a Hub repository, described without importing it."""

    #: The name before the colon in ``--model NAME:REST``; at least two letters.
    name: str
    #: ``"module:function"``: ``(rest) -> perfuse.Source``, called with what follows the colon.
    impl: str
    requires: tuple[str, ...] = ()
    install: str = ""
    summary: str = ""
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReaderManifest:
    """A folder layout that another tool writes, described without importing its reader."""

    #: The layout's name in messages: ``"apple"``.
    name: str
    #: ``"module:Class"``, a subclass of ``perfuse.Reader``.
    impl: str
    #: Globs relative to a folder; a folder has this layout if one of them matches.
    patterns: tuple[str, ...]
    #: Whether such a folder has a ``model_index.json``, as a checkpoint does.
    indexed: bool = False
    requires: tuple[str, ...] = ()
    install: str = ""
    summary: str = ""
    #: The first and the last version of the contract that it was made for, both included.
    api_min: str = "1.0"
    api_max: str | None = None


class Hooks:
    """The hooks that a plugin may implement; each takes no argument and returns manifests."""

    @hookspec
    def perfuse_backends(self) -> Sequence[BackendManifest]:  # type: ignore[empty-body]
        """Backends."""

    @hookspec
    def perfuse_exporters(self) -> Sequence[ExporterManifest]:  # type: ignore[empty-body]
        """Exporters."""

    @hookspec
    def perfuse_architectures(self) -> "Sequence[Architecture]":  # type: ignore[empty-body]
        """Model classes of checkpoints that the plugin can build."""

    @hookspec
    def perfuse_schedulers(self) -> dict[str, str]:  # type: ignore[empty-body]
        """Scheduler class name to its import path, ``"module:Class"``."""

    @hookspec
    def perfuse_pipelines(self) -> Sequence[PipelineManifest]:  # type: ignore[empty-body]
        """Pipeline classes of checkpoints that the plugin can run."""

    @hookspec
    def perfuse_transforms(self) -> Sequence[TransformManifest]:  # type: ignore[empty-body]
        """Transforms, such as accelerations, that rewrite components or the loop."""

    @hookspec
    def perfuse_guiders(self) -> Sequence[GuiderManifest]:  # type: ignore[empty-body]
        """Guidance methods: which branches run at a step, and how their predictions combine."""

    @hookspec
    def perfuse_sources(self) -> Sequence[SourceManifest]:  # type: ignore[empty-body]
        """Kinds of sources, each opened by its name: ``--model NAME:REST``."""

    @hookspec
    def perfuse_readers(self) -> Sequence[ReaderManifest]:  # type: ignore[empty-body]
        """Folder layouts that other tools write."""


#: The longest text that a manifest may hold, and how much of a wrong value is shown, in characters.
_LONGEST, _SHOWN = 10_000, 200


def check_fields(manifest: Any) -> None:
    """Check that each field of a manifest has its declared type.

    Raises:
        PluginError: a field does not; ``requires=("torch")``, for one, is a ``str``, not a tuple.
    """
    hints = get_type_hints(type(manifest))  # resolves annotations that are strings
    for one in fields(manifest):
        value, check = getattr(manifest, one.name), _CHECKS.get(hints[one.name])
        if check is not None and not check[0](value):
            kind, shown = type(manifest).__name__, repr(value)[:_SHOWN]
            raise PluginError(f"returned a {kind} whose {one.name} is {shown}, not {check[1]}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple | list) and all(_is_text(text) for text in value)


def _is_named_texts(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(_is_text(text) for pair in value.items() for text in pair)
    )


def _is_settings(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


#: Declared type of a field to its check, and to what the error message says it must be.
_CHECKS: Mapping[Any, tuple[Callable[[object], bool], str]] = {
    str: (_is_text, "a text"),
    str | None: (lambda value: value is None or _is_text(value), "a text or None"),
    bool: (lambda value: isinstance(value, bool), "True or False"),
    tuple[str, ...]: (_is_texts, "a tuple of texts"),
    Mapping[str, str]: (_is_named_texts, "a dict of text to text that is not empty"),
    Mapping[str, Any]: (_is_settings, "a dict by text"),
}


def out_of_range(manifest: object) -> str | None:
    """Why this contract version is outside a manifest's range; ``None`` if it is inside.

    Raises:
        PluginError: ``api_min`` or ``api_max`` is not a version.
    """
    first, last = getattr(manifest, "api_min", None), getattr(manifest, "api_max", None)
    if first is not None and _version(first) > _version(API_VERSION):
        return f"it needs contract version {first} or later; this perfuse has {API_VERSION}"
    if last is not None and _version(last) < _version(API_VERSION):
        return f"it was made for contract versions up to {last}; this perfuse has {API_VERSION}"
    return None


def _version(text: Any) -> tuple[int, int]:
    try:
        major, minor = (int(part) for part in text.split("."))
    except (AttributeError, ValueError) as exc:
        raise PluginError(f"asks for contract version {text!r}; write MAJOR.MINOR, as 1.0") from exc
    return major, minor


def check_hooks(plugin: ModuleType | object) -> None:
    """Refuse mistakes that pluggy would silently accept.

    Raises:
        PluginError: a hook is unknown, is not a function, takes arguments or has marker options; or
            there is no hook at all.
    """
    known = sorted(name for name in vars(Hooks) if name.startswith("perfuse_"))
    found = False
    for name in dir(plugin):
        implementation = getattr(plugin, name, None)
        options = getattr(implementation, "perfuse_impl", None)  # set by ``hookimpl``
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
        raise PluginError(f"hook {name} is marked with {taken[0]}, which perfuse does not support")


def _check_arguments(name: str, implementation: Callable[..., Any]) -> None:
    for parameter in inspect.signature(implementation).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if parameter.default is not inspect.Parameter.empty:
            raise PluginError(
                f"hook {name} has a default for its argument {parameter.name!r}, which would never "
                "be passed; hooks take no arguments"
            )
        raise PluginError(f"hook {name} takes no arguments, this one takes [{parameter.name!r}]")
