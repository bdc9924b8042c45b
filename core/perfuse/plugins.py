"""The plugin host: finds plugins by entry point, asks them for manifests, survives broken ones.

A manifest is plain data that names classes by string; nothing here imports an engine. Core's own
architectures and schedulers come through the same hooks as anyone's.
"""

import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
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
        for entry in importlib.metadata.entry_points(group=GROUP):
            if allow is not None and entry.name not in allow:
                self._row(entry, "disabled", "it is not in PERFUSE_PLUGINS", "add it there")
            else:
                self._load(entry)

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
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - a plugin may raise anything
            # pluggy keeps what it failed to validate; take it out again.
            self._manager.set_blocked(entry.name)
            if self._manager.has_plugin(entry.name):
                self._manager.unregister(name=entry.name)
            reason = f"{type(exc).__name__}: {exc}".splitlines()[0]
            self._row(entry, "broken", reason, f"update or uninstall {dist}")
        else:
            self._row(entry, "loaded")

    def _ask(self, hook: str) -> Iterator[tuple[str, Any]]:
        """What each plugin returns from a hook, one plugin at a time: one must not stop another."""
        for name, plugin in self._manager.list_name_plugin():
            implementation: Callable[[], Any] | None = getattr(plugin, hook, None)
            if implementation is None:
                continue
            try:
                yield name, implementation()
            except (Exception, SystemExit) as exc:  # noqa: BLE001 - a plugin may raise anything
                reason = f"{hook} raised {type(exc).__name__}: {exc}".splitlines()[0]
                self._replace_row(name, reason)

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

    def _manifests(self, hook: str, kind: type[_T]) -> list[_T]:
        found: list[_T] = []
        for name, manifests in self._ask(hook):
            wrong = [m for m in manifests if not isinstance(m, kind)]
            if wrong:
                self._replace_row(name, f"{hook} returned {wrong[0]!r}, not a {kind.__name__}")
            else:
                found.extend(manifests)
        return found

    def backends(self) -> dict[str, BackendManifest]:
        """Every backend by name, installed engine or not; the first plugin to take a name keeps it."""
        found: dict[str, BackendManifest] = {}
        for manifest in self._manifests("perfuse_backends", BackendManifest):
            found.setdefault(manifest.name, manifest)
        return found

    def exporters(self) -> dict[str, ExporterManifest]:
        """Every exporter by format."""
        found: dict[str, ExporterManifest] = {}
        for manifest in self._manifests("perfuse_exporters", ExporterManifest):
            found.setdefault(manifest.format, manifest)
        return found

    def architectures(self) -> "list[Architecture]":
        """Every architecture that core and the plugins know."""
        from perfuse.architectures import Architecture

        return self._manifests("perfuse_architectures", Architecture)

    def schedulers(self) -> dict[str, str]:
        """Every scheduler class by name."""
        found: dict[str, str] = {}
        for _, names in self._ask("perfuse_schedulers"):
            found.update(names)
        return found

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


def missing_modules(names: Sequence[str]) -> list[str]:
    """Those modules that are not installed. Nothing is imported."""
    return [name for name in names if importlib.util.find_spec(name) is None]


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
    from perfuse.architectures import resolve

    try:
        instance = resolve(reference)()
    except Exception as exc:
        raise PluginError(
            f"The {what} is {reference}; loading it raised {type(exc).__name__}: {exc}. "
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
