"""The plugin host: what the plugins of this environment bring, and the faults of broken ones.

A plugin is imported only when something of it is asked for by name; its manifests are cached.
Core's own architectures, schedulers and pipelines come through the same hooks as those of plugins.
"""

import importlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from perfuse.contract.architecture import Architecture
from perfuse.contract.hooks import (
    API_VERSION,
    BackendManifest,
    ExporterManifest,
    GuiderManifest,
    PipelineManifest,
    ReaderManifest,
    SourceManifest,
    TransformManifest,
    hookimpl,
    out_of_range,
)
from perfuse.errors import (
    BackendError,
    BackendNotFoundError,
    DeviceNotFoundError,
    EngineMissingError,
    ExportError,
    InputError,
    PluginError,
)
from perfuse.plugins.availability import availability, missing_modules, not_installed
from perfuse.plugins.children import TIMEOUT
from perfuse.plugins.declared import Again, Declaration, Failed, Here, declarations
from perfuse.plugins.disabled import is_named
from perfuse.plugins.importing import guarded, quiet, resolve, said
from perfuse.plugins.installed import (
    PluginRow,
    allowed_plugins,
    check_rows,
    is_strict,
    survey,
)
from perfuse.plugins.manifests import Answer, kind_of

if TYPE_CHECKING:
    from perfuse.contract.backend import Backend
    from perfuse.contract.exporter import Exporter
    from perfuse.contract.reader import Reader
    from perfuse.contract.source import Source
    from perfuse.contract.target import Device
    from perfuse.contract.transform import Transform

__all__ = [
    "API_VERSION",
    "BackendManifest",
    "ExporterManifest",
    "PipelineManifest",
    "PluginHost",
    "PluginRow",
    "ReaderManifest",
    "TransformManifest",
    "hookimpl",
    "host",
    "missing_modules",
    "resolve",
    "said",
]

_T = TypeVar("_T")
#: Core's own plugin, named by import path as any other plugin is; and its name here.
_CORE, _OWN = "perfuse.builtin", "perfuse"
#: The most of a fault that a row says, in characters.
_LONGEST = 2000


class PluginHost:
    """The plugins of this environment, usable or not."""

    def __init__(
        self,
        allow: Collection[str] | None = None,
        *,
        again: Again = "none",
        timeout: float = TIMEOUT,
    ) -> None:
        """Read what the plugins declare, from the cache where it is valid.

        Args:
            allow: Names of plugins or distributions; all others are disabled. ``None`` allows all.
            again: Which cached declarations to read again: none, the failed ones, or all.
            timeout: Seconds that reading one plugin may take.

        Raises:
            ConfigError: the file of disabled plugins is damaged.
        """
        self._answers: dict[str, list[tuple[str, Answer]]] = {}
        self._plugins: dict[str, Declaration] = {_OWN: Here(importlib.import_module(_CORE))}
        self.rows: list[PluginRow] = []
        entries = survey(allow)
        enabled = [entry for entry, row in entries if row.state == "enabled"]
        declared = iter(declarations(enabled, again=again, timeout=timeout))
        for _, row in entries:
            self.rows.append(self._take(row, next(declared)) if row.state == "enabled" else row)
        for name in allow or ():
            if not any(is_named(entry.key, [name]) for entry, _ in entries):
                self.rows.append(_not_there(name))

    def _take(self, row: PluginRow, declared: Declaration | Failed) -> PluginRow:
        """Register a plugin that is not disabled, and return its row: loaded, or why not."""
        if isinstance(declared, Failed):
            return replace(
                row,
                state=declared.state,
                reason=declared.reason,
                remedy=_remedy(row, crashed=declared.state == "crashed"),
            )
        self._plugins[row.name] = declared
        return replace(row, state="loaded", changes=tuple(declared.changes))

    def _ask(self, hook: str) -> list[tuple[str, Answer]]:
        """Each plugin's answer to a hook; a fault of one plugin does not affect the others.

        Raises:
            PluginError: core's own failed, without which there is nothing.
        """
        if hook not in self._answers:
            self._answers[hook] = list(self._asked(hook))
        return self._answers[hook]

    def _asked(self, hook: str) -> Iterator[tuple[str, Answer]]:
        for name, plugin in self._plugins.items():
            try:
                answer = plugin.ask(hook)
            except PluginError as exc:
                if name == _OWN:
                    raise
                self._spoil(name, str(exc))
                continue
            if answer is not None:
                yield name, answer

    def _spoil(self, name: str, reason: str, *, state: str = "broken", remedy: str = "") -> None:
        """Note a plugin's fault on its row, unless the row has one already."""
        for i, row in enumerate(self.rows):
            if row.name == name and row.state == "loaded":
                line = " ".join(reason.split())[:_LONGEST]
                self.rows[i] = replace(row, state=state, reason=line, remedy=remedy or _remedy(row))

    def _manifests(self, hook: str, kind: type[_T]) -> Iterator[tuple[str, _T]]:
        """Each manifest of a supported contract version, with the plugin that brought it."""
        for name, manifests in self._ask(hook):
            for manifest in manifests:
                try:
                    reason = out_of_range(manifest)
                except PluginError as exc:
                    self._spoil(name, f"{hook} {exc}")
                    continue
                if reason is not None:
                    remedy = "install another version of perfuse, or of the plugin"
                    self._spoil(name, reason, state="incompatible", remedy=remedy)
                elif isinstance(manifest, kind):
                    yield name, manifest

    def _by_name(self, named: Iterable[tuple[str, str, _T]], what: str) -> dict[str, _T]:
        """Name to item. On a collision the first plugin wins; the later is reported broken."""
        found: dict[str, tuple[str, _T]] = {}
        for plugin, name, value in named:
            owner, _ = found.setdefault(name, (plugin, value))
            if owner != plugin:
                self._spoil(plugin, f"the {what} {name!r} is there already, from {owner}")
        return {name: value for name, (_, value) in found.items()}

    def backends(self) -> dict[str, BackendManifest]:
        """Every backend by name, with or without its engine. The first plugin keeps a name."""
        pairs = self._manifests("perfuse_backends", BackendManifest)
        return self._by_name(((plugin, m.name, m) for plugin, m in pairs), "backend")

    def exporters(self) -> dict[str, ExporterManifest]:
        """Every exporter by format. The first plugin keeps a format."""
        pairs = self._manifests("perfuse_exporters", ExporterManifest)
        return self._by_name(((plugin, m.format, m) for plugin, m in pairs), "exporter for")

    def architectures(self) -> dict[str, Architecture]:
        """Every architecture by class name. Plugins cannot replace core's."""
        hook = "perfuse_architectures"
        pairs: Iterator[tuple[str, Architecture]] = self._manifests(hook, kind_of(hook))
        return self._by_name(((plugin, m.class_name, m) for plugin, m in pairs), "architecture")

    def pipelines(self) -> dict[str, PipelineManifest]:
        """Every pipeline class by name. Plugins cannot replace core's."""
        pairs = self._manifests("perfuse_pipelines", PipelineManifest)
        return self._by_name(((plugin, m.class_name, m) for plugin, m in pairs), "pipeline")

    def transforms(self) -> dict[str, TransformManifest]:
        """Every transform by name. The first plugin keeps a name."""
        pairs = self._manifests("perfuse_transforms", TransformManifest)
        return self._by_name(((plugin, m.name, m) for plugin, m in pairs), "transform")

    def readers(self) -> dict[str, ReaderManifest]:
        """Every folder layout with a reader, by name. The first plugin keeps a name."""
        pairs = self._manifests("perfuse_readers", ReaderManifest)
        return self._by_name(((plugin, m.name, m) for plugin, m in pairs), "reader")

    def sources(self) -> dict[str, SourceManifest]:
        """Every kind of source by name. The first plugin keeps a name."""
        pairs = self._manifests("perfuse_sources", SourceManifest)
        return self._by_name(((plugin, m.name, m) for plugin, m in pairs), "source")

    def guiders(self) -> dict[str, GuiderManifest]:
        """Every guidance method of plugins by name. The first plugin keeps a name."""
        pairs = self._manifests("perfuse_guiders", GuiderManifest)
        return self._by_name(((plugin, m.name, m) for plugin, m in pairs), "guider")

    def schedulers(self) -> dict[str, str]:
        """Import path of every scheduler class by name. Plugins cannot replace core's."""
        answers = self._ask("perfuse_schedulers")
        named = (
            (plugin, name, where)
            for plugin, names in answers
            if isinstance(names, Mapping)
            for name, where in names.items()
        )
        return self._by_name(named, "scheduler")

    def ask_all(self) -> None:
        """Call every hook, so that ``rows`` shows each fault."""
        self.backends()
        self.exporters()
        self.architectures()
        self.schedulers()
        self.pipelines()
        self.transforms()
        self.readers()
        self.sources()
        self.guiders()

    def brought_by(self, name: str, hook: str = "perfuse_backends") -> PluginRow | None:
        """The row of the plugin that brings a backend, or, with ``hook``, another item."""
        for owner, manifests in self._answers.get(hook, ()):
            names = (getattr(m, "name", None) or getattr(m, "format", None) for m in manifests)
            if name in names:
                return next((row for row in self.rows if row.name == owner), None)
        return None

    def listing(self) -> dict[str, list[dict[str, Any]]]:
        """``plugins`` and ``backends`` as rows of plain data, without importing an engine.

        A plugin that cannot be used is listed among the backends too: it might bring one.
        """
        self.ask_all()
        backends = []
        for name, manifest in sorted(self.backends().items()):
            state, reason, remedy = availability(manifest)
            interpreters = self.interpreters(name)
            if state != "available" and interpreters:
                hint = f"to interpret its files here: --backend {interpreters[0]}"
                remedy = f"{remedy}; {hint}" if remedy else hint
            plugin = self.brought_by(name)
            backends.append(
                {
                    "backend": name,
                    "state": state,
                    "reason": reason,
                    "remedy": remedy,
                    "summary": manifest.summary,
                    "exports": [f for f in manifest.formats if self._exports(f)],
                    "interprets": manifest.interprets,
                    "interpreters": interpreters,
                    "plugin": plugin.name if plugin is not None else "",
                    "distribution": plugin.distribution if plugin is not None else "",
                    "version": plugin.version if plugin is not None else "",
                    "devices": [],
                    "changes": list(plugin.changes) if plugin is not None else [],
                }
            )
        backends += [row.as_backend() for row in self.rows if row.state != "loaded"]
        return {"plugins": [asdict(row) for row in self.rows], "backends": backends}

    def interpreters(self, name: str) -> list[str]:
        """The usable backends that interpret the programs of this backend."""
        found = self.backends().items()
        return [n for n, m in found if m.interprets == name and availability(m)[0] == "available"]

    def _exports(self, format: str) -> bool:
        """Whether an exporter for the format and the packages that it needs are installed."""
        manifest = self.exporters().get(format)
        return manifest is not None and not missing_modules(manifest.requires)

    def check(self) -> None:
        """Raise if any plugin or backend is at fault.

        Raises:
            PluginError: the message names every plugin and backend at fault.
        """
        check_rows(self.listing()["backends"])

    def backend(self, name: str) -> "Backend":
        """The backend of a name.

        Raises:
            BackendNotFoundError: no plugin offers it.
            EngineMissingError: its engine is not installed.
            BackendError: two installed distributions overwrite each other's files.
            PluginError: its class cannot be imported.
        """
        backends = self.backends()
        if name not in backends:
            others = [
                f"{row.name} ({row.state if row.state != 'broken' else row.reason})"
                for row in self.rows
                if row.state not in ("loaded", "not installed")
            ]
            raise BackendNotFoundError(
                f"Backend {name!r} was asked for; found: {', '.join(sorted(backends)) or 'none'}."
                + (f" Plugins that cannot be used: {'; '.join(others)}." if others else "")
                + " `perfuse backends` lists them all."
            )
        manifest = backends[name]
        state, reason, remedy = availability(manifest)
        if state == "not installed":
            raise EngineMissingError(f"Backend {name!r} was asked for; {reason}. Run: {remedy}")
        if state == "unavailable":
            others = self.interpreters(name)
            raise BackendError(
                f"Backend {name!r} was asked for; {reason}. "
                + (f"To interpret its files here: --backend {others[0]}" if others else "")
            )
        if state != "available":
            raise BackendError(f"Backend {name!r} was asked for; {reason}. To repair it: {remedy}")
        from perfuse.contract.backend import Backend

        loaded = _instantiate(manifest.impl, Backend, f"backend {name!r}")  # type: ignore[type-abstract]
        return loaded

    def devices(self, name: str) -> "list[Device]":
        """The devices of a backend, at least one.

        Raises:
            BackendError: there is no such backend, it cannot be used, or it sees no device.
            PluginError: it raises something else, or returns something else.
        """
        from perfuse.contract.target import Device

        backend = self.backend(name)
        with guarded(
            lambda why: PluginError(
                f"Backend {name!r} was asked for its devices; it raised {why}. Update or uninstall "
                "its plugin."
            )
        ):
            found = list(backend.devices())
        if wrong := [one for one in found if not isinstance(one, Device)]:
            raise PluginError(
                f"Backend {name!r} was asked for its devices; it listed {wrong[0]!r}. Update or "
                "uninstall its plugin."
            )
        if not found:
            raise DeviceNotFoundError(
                f"Backend {name!r} was asked for its devices; its engine lists none. Install the "
                "device's driver, or choose another backend."
            )
        return found

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
                f"An export to {format} was asked for; {not_installed(missing)}. "
                f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
            )
        from perfuse.contract.exporter import Exporter

        return _instantiate(manifest.impl, Exporter, f"exporter {format!r}")  # type: ignore[type-abstract]

    def transform(self, name: str) -> "Transform":
        """The transform of a name.

        Raises:
            InputError: no plugin offers it, or a package that it needs is not installed.
            PluginError: its class cannot be imported.
        """
        transforms = self.transforms()
        if name not in transforms:
            raise InputError(
                f"Transform {name!r} was asked for; installed: "
                f"{', '.join(sorted(transforms)) or 'none'}. `perfuse backends` lists the plugins "
                "that cannot be used."
            )
        manifest = transforms[name]
        if missing := missing_modules(manifest.requires):
            raise InputError(
                f"Transform {name!r} was asked for; {not_installed(missing)}. "
                f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
            )
        from perfuse.contract.transform import Transform

        return _instantiate(manifest.impl, Transform, f"transform {name!r}")  # type: ignore[type-abstract]

    def source(self, name: str, rest: str) -> "Source":
        """Open ``NAME:REST`` with the plugin of that kind of source.

        Raises:
            InputError: a package that the plugin needs is not installed.
            PluginError: the plugin's function cannot be imported, or returns no ``Source``.
        """
        manifest = self.sources()[name]
        if missing := missing_modules(manifest.requires):
            raise InputError(
                f"Model {name}:{rest} was asked for; {not_installed(missing)}. "
                f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
            )
        from perfuse.contract.source import Source

        with guarded(
            lambda why: PluginError(
                f"Model {name}:{rest} was to be opened by {manifest.impl}, which raised {why}. "
                "Update or uninstall its plugin."
            )
        ):
            source = resolve(manifest.impl)(rest)
        if not isinstance(source, Source):
            raise PluginError(
                f"Model {name}:{rest} was to be opened by {manifest.impl}, which returned "
                f"{source!r}, not a Source. Update or uninstall its plugin."
            )
        return source

    def reader(self, name: str) -> "Reader":
        """The reader of a folder layout.

        Raises:
            InputError: a package that it needs is not installed.
            PluginError: its class cannot be imported.
        """
        manifest = self.readers()[name]
        if missing := missing_modules(manifest.requires):
            raise InputError(
                f"A folder of the layout {name!r} was to be read; {not_installed(missing)}. "
                f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
            )
        from perfuse.contract.reader import Reader

        return _instantiate(manifest.impl, Reader, f"reader {name!r}")  # type: ignore[type-abstract]


def _not_there(name: str) -> PluginRow:
    return PluginRow(
        name=name,
        distribution="?",
        version="?",
        state="not installed",
        reason="PERFUSE_PLUGINS names it, and no plugin of this name is installed",
        remedy="install it, or take it out there",
    )


def _remedy(row: PluginRow, *, crashed: bool = False) -> str:
    if crashed:
        return f"perfuse plugin disable {row.name}, then update or uninstall {row.distribution}"
    return f"update or uninstall {row.distribution}, or: perfuse plugin disable {row.name}"


def _instantiate(reference: str, kind: type[_T], what: str) -> _T:
    with (
        guarded(
            lambda why: PluginError(
                f"The {what} is {reference}; loading it raised {why}. Update or uninstall its plugin."
            )
        ),
        quiet(),
    ):
        instance = resolve(reference)()
    if not isinstance(instance, kind):
        raise PluginError(
            f"The {what} is {reference}, which is not a {kind.__name__}. Update or uninstall its "
            "plugin."
        )
    return instance


@lru_cache(maxsize=1)
def host() -> PluginHost:
    """The plugin host of this process.

    ``PERFUSE_PLUGINS``, if set, names the plugins to load; ``PERFUSE_STRICT=1`` makes a broken,
    incompatible or conflicting plugin an error.

    Raises:
        PluginError: a plugin is at fault and ``PERFUSE_STRICT`` is set.
        ConfigError: the file of disabled plugins is damaged.
    """
    found = PluginHost(allowed_plugins())
    if is_strict():
        found.check()
    return found
