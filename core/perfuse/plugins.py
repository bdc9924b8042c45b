"""The plugin host: finds plugins by entry point, asks them for manifests, survives broken ones.

A manifest is plain data that names classes by string; nothing here imports an engine. Core's own
architectures and schedulers come through the same hooks as anyone's.
"""

import importlib.metadata
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from perfuse.errors import BackendNotFoundError, EngineMissingError, ExportError, PluginError

if TYPE_CHECKING:
    from perfuse.architectures import Architecture
    from perfuse.backend import Backend, Exporter

__all__ = [
    "API_VERSION",
    "BackendManifest",
    "ExporterManifest",
    "PluginHost",
    "PluginRow",
    "hookimpl",
    "host",
]

#: The major version is in the group's name, so a plugin for another major is never imported.
GROUP = "perfuse.v1"
_MAJOR = re.compile(r"perfuse\.v\d+")
#: The version of the contract in ``backend.py`` and of the hooks below.
API_VERSION = "1.0"

hookspec = pluggy.HookspecMarker("perfuse")
#: Marks a plugin's hook: ``@hookimpl def perfuse_backends(): return [BackendManifest(…)]``.
hookimpl = pluggy.HookimplMarker("perfuse")

_T = TypeVar("_T")


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
    #: The command that installs them.
    install: str = ""
    summary: str = ""


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


class _Hooks:
    """What a plugin may implement; each hook returns manifests."""

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
    def perfuse_schedulers(self) -> "dict[str, str]":  # type: ignore[empty-body]
        """Scheduler class names, each with the ``"module:Class"`` that it is."""


class _Core:
    """What core itself brings, through the door that everyone uses."""

    @hookimpl
    def perfuse_architectures(self) -> "Sequence[Architecture]":
        from perfuse.architectures import ARCHITECTURES

        return ARCHITECTURES

    @hookimpl
    def perfuse_schedulers(self) -> dict[str, str]:
        from perfuse.schedulers import SCHEDULERS

        return dict(SCHEDULERS)


@dataclass(frozen=True, kw_only=True)
class PluginRow:
    """One entry point and what became of it."""

    name: str
    distribution: str
    version: str
    #: ``"loaded"``, ``"broken"``, ``"incompatible"`` or ``"disabled"``.
    state: str
    reason: str = ""
    remedy: str = ""


class PluginHost:
    """The plugins of this environment, those that work and those that do not."""

    def __init__(self, allow: Sequence[str] | None = None) -> None:
        self._manager = pluggy.PluginManager("perfuse")
        self._manager.add_hookspecs(_Hooks)
        self._manager.register(_Core(), name="perfuse")
        self.rows: list[PluginRow] = []
        entries = importlib.metadata.entry_points()
        for entry in entries.select(group=GROUP):
            if allow is not None and entry.name not in allow:
                self._row(entry, "disabled", "it is not in PERFUSE_PLUGINS", "add it there")
            else:
                self._load(entry)
        for group in sorted(g for g in entries.groups if _MAJOR.fullmatch(g) and g != GROUP):
            for entry in entries.select(group=group):
                self._row(
                    entry,
                    "incompatible",
                    f"it is made for {group}, this perfuse has {GROUP}",
                    f"install a version of it for {GROUP}, or the perfuse that has {group}",
                )

    def _row(
        self, entry: importlib.metadata.EntryPoint, state: str, reason: str = "", remedy: str = ""
    ) -> None:
        dist = entry.dist
        self.rows.append(
            PluginRow(
                name=entry.name,
                distribution=dist.name if dist is not None else "?",
                version=dist.version if dist is not None else "?",
                state=state,
                reason=reason,
                remedy=remedy,
            )
        )

    def _load(self, entry: importlib.metadata.EntryPoint) -> None:
        """Import and register one plugin; whatever goes wrong becomes its row."""
        if self._manager.has_plugin(entry.name):
            self._row(
                entry, "broken", "another plugin has the same name", "uninstall one of the two"
            )
            return
        dist = entry.dist.name if entry.dist is not None else entry.value
        try:
            plugin = entry.load()
            _check(plugin)
            self._manager.register(plugin, name=entry.name)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - a plugin may raise anything
            # pluggy keeps what it failed to validate; take it out again.
            self._manager.set_blocked(entry.name)
            if self._manager.has_plugin(entry.name):
                self._manager.unregister(name=entry.name)
            self._row(entry, "broken", said(exc), f"update or uninstall {dist}")
        else:
            self._row(entry, "loaded")

    def _ask(self, hook: str, read: Callable[[Any], _T]) -> Iterator[tuple[str, _T]]:
        """Each plugin's answer to a hook as ``read`` takes it; one must not stop another."""
        for name, plugin in self._manager.list_name_plugin():
            implementation: Callable[[], Any] | None = getattr(plugin, hook, None)
            if implementation is None:
                continue
            try:
                answer = read(implementation())
            except KeyboardInterrupt:
                raise
            except PluginError as exc:
                self._replace_row(name, f"{hook} {exc}")
            except BaseException as exc:  # noqa: BLE001 - a plugin may raise anything
                self._replace_row(name, f"{hook} raised {said(exc)}")
            else:
                yield name, answer

    def _replace_row(self, name: str, reason: str) -> None:
        for i, row in enumerate(self.rows):
            if row.name == name:
                self.rows[i] = PluginRow(
                    name=name,
                    distribution=row.distribution,
                    version=row.version,
                    state="broken",
                    reason=reason,
                    remedy=f"update or uninstall {row.distribution}",
                )

    def _manifests(self, hook: str, kind: type[_T]) -> Iterator[tuple[str, _T]]:
        """Each manifest with the plugin that brought it."""

        def read(answer: Any) -> list[_T]:
            manifests = list(answer) if isinstance(answer, Iterable) else [answer]
            wrong = [m for m in manifests if not isinstance(m, kind)]
            if wrong or not isinstance(answer, Iterable):
                shown = wrong[0] if wrong else answer
                raise PluginError(f"returned {shown!r}, not a list of {kind.__name__}")
            return manifests

        for name, manifests in self._ask(hook, read):
            for manifest in manifests:
                yield name, manifest

    def _by_name(self, named: Iterable[tuple[str, str, _T]], what: str) -> dict[str, _T]:
        """The first plugin to take a name keeps it; the next is a row."""
        found: dict[str, tuple[str, _T]] = {}
        for plugin, name, value in named:
            owner, _ = found.setdefault(name, (plugin, value))
            if owner != plugin:
                self._replace_row(plugin, f"the {what} {name!r} is there already, from {owner}")
        return {name: value for name, (_, value) in found.items()}

    def backends(self) -> dict[str, BackendManifest]:
        """Every backend by name, installed engine or not; the first plugin to take a name keeps it."""
        pairs = self._manifests("perfuse_backends", BackendManifest)
        return self._by_name(((plugin, m.name, m) for plugin, m in pairs), "backend")

    def exporters(self) -> dict[str, ExporterManifest]:
        """Every exporter by format; the first plugin to take a format keeps it."""
        pairs = self._manifests("perfuse_exporters", ExporterManifest)
        return self._by_name(((plugin, m.format, m) for plugin, m in pairs), "exporter for")

    def architectures(self) -> "list[Architecture]":
        """Every architecture that core and the plugins know."""
        from perfuse.architectures import Architecture

        return [manifest for _, manifest in self._manifests("perfuse_architectures", Architecture)]

    def schedulers(self) -> dict[str, str]:
        """Every scheduler class by name; core's are core's."""

        def read(answer: Any) -> dict[str, str]:
            fits = isinstance(answer, Mapping) and all(
                isinstance(text, str) for pair in answer.items() for text in pair
            )
            if not fits:
                raise PluginError(f"returned {answer!r}, not a dict of class name to module:Class")
            return dict(answer)

        answers = self._ask("perfuse_schedulers", read)
        named = (
            (plugin, name, where) for plugin, names in answers for name, where in names.items()
        )
        return self._by_name(named, "scheduler")

    def ask_all(self) -> None:
        """Ask every hook, so that ``rows`` tells of each one that fails."""
        for hook in (self.backends, self.exporters, self.architectures, self.schedulers):
            hook()

    def backend(self, name: str) -> "Backend":
        """The backend of a name.

        Raises:
            BackendNotFoundError: no plugin offers it.
            EngineMissingError: its engine is not installed.
            PluginError: its class cannot be imported.
        """
        backends = self.backends()
        if name not in backends:
            broken = [f"{row.name} ({row.reason})" for row in self.rows if row.state == "broken"]
            raise BackendNotFoundError(
                f"Backend {name!r} was asked for; found: {', '.join(sorted(backends)) or 'none'}."
                + (f" Broken plugins: {'; '.join(broken)}." if broken else "")
                + " `perfuse backends` lists them all."
            )
        manifest = backends[name]
        if missing := missing_modules(manifest.requires):
            raise EngineMissingError(
                f"Backend {name!r} was asked for; {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not installed. "
                f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
            )
        from perfuse.backend import Backend

        loaded = _instantiate(manifest.impl, Backend, f"backend {name!r}")  # type: ignore[type-abstract]
        return loaded

    def exporter(self, format: str) -> "Exporter":
        """The exporter of a format.

        Raises:
            ExportError: no plugin offers it, or the tools it needs are not installed.
            PluginError: its class cannot be imported.
        """
        exporters = self.exporters()
        if format not in exporters:
            raise ExportError(
                f"Format {format!r} was asked for; exporters are installed for "
                f"{', '.join(sorted(exporters)) or 'none'}."
            )
        manifest = exporters[format]
        if missing := missing_modules(manifest.requires):
            raise ExportError(
                f"An export to {format} was asked for; {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not installed. "
                f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
            )
        from perfuse.backend import Exporter

        return _instantiate(manifest.impl, Exporter, f"exporter {format!r}")  # type: ignore[type-abstract]


def resolve(reference: str) -> Callable[..., Any]:
    """The object that ``"module:name"`` names."""
    module, _, name = reference.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def missing_modules(names: Sequence[str]) -> list[str]:
    """Those modules that are not installed. Nothing is imported but the packages they are in."""
    return [name for name in names if not _is_installed(name)]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def said(exc: BaseException) -> str:
    """What an exception of somebody else's says, on one line."""
    return f"{type(exc).__name__}: {exc}".splitlines()[0].removesuffix(": ")


def _check(plugin: ModuleType | object) -> None:
    """Refuse what pluggy would take in silence."""
    known = {name for name in vars(_Hooks) if name.startswith("perfuse_")}
    for name in dir(plugin):
        if not name.startswith("perfuse_"):
            continue
        implementation = getattr(plugin, name)
        if not callable(implementation):
            continue
        if name not in known:
            raise PluginError(f"hook {name} does not exist; hooks: {', '.join(sorted(known))}")
        required = [
            p.name
            for p in inspect.signature(implementation).parameters.values()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        if required:
            raise PluginError(f"hook {name} takes no arguments, this one takes {required}")


def _instantiate(reference: str, kind: type[_T], what: str) -> _T:
    try:
        instance = resolve(reference)()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise PluginError(
            f"The {what} is {reference}; loading it raised {said(exc)}. "
            "Update or uninstall its plugin."
        ) from exc
    if not isinstance(instance, kind):
        raise PluginError(f"The {what} is {reference}, which is not a {kind.__name__}.")
    return instance


@lru_cache(maxsize=1)
def host() -> PluginHost:
    """The host of this process. ``PERFUSE_PLUGINS`` , if set, names those to load."""
    allowed = os.environ.get("PERFUSE_PLUGINS")
    return PluginHost(allowed.split(",") if allowed is not None else None)
