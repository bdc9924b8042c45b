"""The plugin host: finds plugins by entry point, asks them for manifests, survives broken ones.

Core's own architectures, schedulers and pipelines come through the same hooks as anyone's.
"""

import importlib.metadata
import importlib.util
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from perfuse.contract.architecture import Architecture
from perfuse.contract.hooks import (
    API_VERSION,
    BackendManifest,
    ExporterManifest,
    Hooks,
    PipelineManifest,
    ReaderManifest,
    TransformManifest,
    check_fields,
    check_hooks,
    hookimpl,
    out_of_range,
)
from perfuse.errors import (
    BackendError,
    BackendNotFoundError,
    EngineMissingError,
    ExportError,
    InputError,
    PluginError,
)
from perfuse.plugins.disabled import is_named
from perfuse.plugins.installed import (
    Entry,
    PluginRow,
    allowed_plugins,
    check_rows,
    is_strict,
    survey,
)

if TYPE_CHECKING:
    from perfuse.contract.backend import Backend
    from perfuse.contract.exporter import Exporter
    from perfuse.contract.reader import Reader
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
]

_T = TypeVar("_T")
_printing = threading.RLock()


class PluginHost:
    """The plugins of this environment, those that work and those that do not."""

    def __init__(
        self,
        allow: Collection[str] | None = None,
        *,
        without: Collection[str] = (),
        watch: Callable[[str], None] | None = None,
    ) -> None:
        """Import the plugins.

        Args:
            allow: Names of plugins or of distributions; every other one is disabled.
            without: Names of plugins that are left alone, without a row.
            watch: Is told the name of each plugin whose code runs next.

        Raises:
            ConfigError: the file that says what is disabled is damaged.
        """
        self._watch = watch
        self._manager = pluggy.PluginManager("perfuse")
        self._manager.add_hookspecs(Hooks)
        self._manager.register(importlib.import_module("perfuse.builtin"), name="perfuse")
        self._answers: dict[str, list[tuple[str, Any]]] = {}
        self.rows: list[PluginRow] = []
        entries = survey(allow)
        for entry, row in entries:
            if row.state != "enabled":
                self.rows.append(row)
            elif entry.name not in without:
                self.rows.append(self._load(entry, row))
        for name in allow or ():
            if not any(is_named(entry.key, [name]) for entry, _ in entries):
                self.rows.append(_not_there(name))

    def _load(self, entry: Entry, row: PluginRow) -> PluginRow:
        """Import and register one plugin; whatever goes wrong becomes its row."""
        try:
            with self._running(entry.name):
                plugin = entry.point.load()
                check_hooks(plugin)
                # pluggy keeps what it fails to validate: it is only given what has passed.
                self._manager.register(plugin, name=entry.name)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - a plugin may raise anything
            if self._manager.has_plugin(entry.name):
                self._manager.unregister(name=entry.name)
            reason = str(exc) if type(exc) is PluginError else said(exc)
            return replace(row, state="broken", reason=reason, remedy=_remedy(row))
        return replace(row, state="loaded")

    @contextmanager
    def _running(self, name: str) -> Iterator[None]:
        """While a plugin's code runs."""
        if self._watch is not None:
            self._watch(name)
        with _not_printing():
            yield

    def _ask(self, hook: str, read: Callable[[Any], _T]) -> list[tuple[str, _T]]:
        """Each plugin's answer to a hook as ``read`` takes it; one must not stop another."""
        if hook not in self._answers:
            self._answers[hook] = list(self._asked(hook, read))
        return self._answers[hook]

    def _asked(self, hook: str, read: Callable[[Any], _T]) -> Iterator[tuple[str, _T]]:
        for name, plugin in self._manager.list_name_plugin():
            if not hasattr(plugin, hook):
                continue
            try:
                with self._running(name):
                    answer = read(getattr(plugin, hook)())
            except KeyboardInterrupt:
                raise
            except PluginError as exc:
                self._spoil(name, f"{hook} {exc}")
            except BaseException as exc:  # noqa: BLE001 - a plugin may raise anything
                self._spoil(name, f"{hook} raised {said(exc)}")
            else:
                yield name, answer

    def _spoil(self, name: str, reason: str, *, state: str = "broken", remedy: str = "") -> None:
        """Say on a plugin's row what is wrong with it. The first thing that was stays."""
        for i, row in enumerate(self.rows):
            if row.name == name and row.state == "loaded":
                line = " ".join(reason.split())
                self.rows[i] = replace(row, state=state, reason=line, remedy=remedy or _remedy(row))

    def _manifests(self, hook: str, kind: type[_T]) -> Iterator[tuple[str, _T]]:
        """Each manifest that this host can take, with the plugin that brought it."""

        def read(answer: Any) -> list[tuple[_T, str | None]]:
            manifests = list(answer) if isinstance(answer, Iterable) else [answer]
            wrong = [m for m in manifests if not isinstance(m, kind)]
            if wrong or not isinstance(answer, Iterable):
                shown = wrong[0] if wrong else answer
                raise PluginError(f"returned {shown!r}, not a list of {kind.__name__}")
            for manifest in manifests:
                check_fields(manifest)
            return [(manifest, out_of_range(manifest)) for manifest in manifests]

        for name, manifests in self._ask(hook, read):
            for manifest, reason in manifests:
                if reason is None:
                    yield name, manifest
                else:
                    remedy = "install another version of perfuse, or of the plugin"
                    self._spoil(name, reason, state="incompatible", remedy=remedy)

    def _by_name(self, named: Iterable[tuple[str, str, _T]], what: str) -> dict[str, _T]:
        """The first plugin to take a name keeps it; the next is a row."""
        found: dict[str, tuple[str, _T]] = {}
        for plugin, name, value in named:
            owner, _ = found.setdefault(name, (plugin, value))
            if owner != plugin:
                self._spoil(plugin, f"the {what} {name!r} is there already, from {owner}")
        return {name: value for name, (_, value) in found.items()}

    def backends(self) -> dict[str, BackendManifest]:
        """Every backend by name, installed engine or not; the first plugin to take a name keeps it."""
        pairs = self._manifests("perfuse_backends", BackendManifest)
        return self._by_name(((plugin, m.name, m) for plugin, m in pairs), "backend")

    def exporters(self) -> dict[str, ExporterManifest]:
        """Every exporter by format; the first plugin to take a format keeps it."""
        pairs = self._manifests("perfuse_exporters", ExporterManifest)
        return self._by_name(((plugin, m.format, m) for plugin, m in pairs), "exporter for")

    def architectures(self) -> dict[str, Architecture]:
        """Every architecture by class name; core's are core's."""
        pairs = self._manifests("perfuse_architectures", Architecture)
        return self._by_name(((plugin, m.class_name, m) for plugin, m in pairs), "architecture")

    def pipelines(self) -> dict[str, PipelineManifest]:
        """Every pipeline class by name; core's are core's."""
        pairs = self._manifests("perfuse_pipelines", PipelineManifest)
        return self._by_name(((plugin, m.class_name, m) for plugin, m in pairs), "pipeline")

    def transforms(self) -> dict[str, TransformManifest]:
        """Every transform by name; the first plugin to take a name keeps it."""
        pairs = self._manifests("perfuse_transforms", TransformManifest)
        return self._by_name(((plugin, m.name, m) for plugin, m in pairs), "transform")

    def readers(self) -> dict[str, ReaderManifest]:
        """Every layout that is read, by name; the first plugin to take a name keeps it."""
        pairs = self._manifests("perfuse_readers", ReaderManifest)
        return self._by_name(((plugin, m.name, m) for plugin, m in pairs), "reader")

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
        self.backends()
        self.exporters()
        self.architectures()
        self.schedulers()
        self.pipelines()
        self.transforms()
        self.readers()

    def brought_by(self, name: str, hook: str = "perfuse_backends") -> PluginRow | None:
        """The row of the plugin that a backend, or what another hook brings, is from."""
        for owner, manifests in self._answers.get(hook, ()):
            names = (getattr(m, "name", None) or getattr(m, "format", None) for m, _ in manifests)
            if name in names:
                return next((row for row in self.rows if row.name == owner), None)
        return None

    def listing(self) -> dict[str, list[dict[str, Any]]]:
        """What is there, as plain data and without an engine: ``plugins`` and ``backends``.

        A plugin that cannot be used is among the backends too: it may have brought one.
        """
        self.ask_all()
        backends = []
        for name, manifest in sorted(self.backends().items()):
            state, reason, remedy = standing(manifest)
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
                }
            )
        backends += [row.as_backend() for row in self.rows if row.state != "loaded"]
        return {"plugins": [asdict(row) for row in self.rows], "backends": backends}

    def interpreters(self, name: str) -> list[str]:
        """The backends that are here and compute what a backend's engine would."""
        found = self.backends().items()
        return [n for n, m in found if m.interprets == name and standing(m)[0] == "available"]

    def _exports(self, format: str) -> bool:
        """Whether an exporter for the format is here, with the tools that it needs."""
        manifest = self.exporters().get(format)
        return manifest is not None and not missing_modules(manifest.requires)

    def check(self) -> None:
        """Refuse to go on where anything is wrong with any plugin.

        Raises:
            PluginError: it names every plugin and backend at fault.
        """
        check_rows(self.listing()["backends"])

    def backend(self, name: str) -> "Backend":
        """The backend of a name.

        Raises:
            BackendNotFoundError: no plugin offers it.
            EngineMissingError: its engine is not installed.
            BackendError: two distributions that are installed spoil each other's files.
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
        state, reason, remedy = standing(manifest)
        if state == "not installed":
            raise EngineMissingError(f"Backend {name!r} was asked for; {reason}. Run: {remedy}")
        if state == "unavailable":
            others = self.interpreters(name)
            raise BackendError(
                f"Backend {name!r} was asked for; {reason}. "
                + (f"To interpret its files here: --backend {others[0]}" if others else "")
            )
        if state != "available":
            raise BackendError(f"Backend {name!r} was asked for; {reason}. Mend that: {remedy}")
        from perfuse.contract.backend import Backend

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
                f"An export to {format} was asked for; {_not_installed(missing)}. "
                f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
            )
        from perfuse.contract.exporter import Exporter

        return _instantiate(manifest.impl, Exporter, f"exporter {format!r}")  # type: ignore[type-abstract]

    def transform(self, name: str) -> "Transform":
        """The transform of a name.

        Raises:
            InputError: no plugin offers it, or what it needs is not installed.
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
                f"Transform {name!r} was asked for; {_not_installed(missing)}. "
                f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
            )
        from perfuse.contract.transform import Transform

        return _instantiate(manifest.impl, Transform, f"transform {name!r}")  # type: ignore[type-abstract]

    def reader(self, name: str) -> "Reader":
        """The reader of a layout.

        Raises:
            InputError: what it needs is not installed.
            PluginError: its class cannot be imported.
        """
        manifest = self.readers()[name]
        if missing := missing_modules(manifest.requires):
            raise InputError(
                f"A folder of the layout {name!r} was to be read; {_not_installed(missing)}. "
                f"Run: {manifest.install or 'pip install ' + ' '.join(missing)}"
            )
        from perfuse.contract.reader import Reader

        return _instantiate(manifest.impl, Reader, f"reader {name!r}")  # type: ignore[type-abstract]


_SYSTEMS = {"darwin": "macOS", "linux": "Linux", "win32": "Windows"}


@contextmanager
def _not_printing() -> Iterator[None]:
    """What a plugin prints is no part of what a command prints."""
    with _printing, redirect_stdout(sys.stderr):  # two threads would restore each other's
        yield


def standing(manifest: BackendManifest) -> tuple[str, str, str]:
    """State, reason and remedy of a backend, by what is installed; imports nothing."""
    if manifest.platforms and sys.platform not in manifest.platforms:
        systems = " or ".join(_SYSTEMS.get(name, name) for name in manifest.platforms)
        here = _SYSTEMS.get(sys.platform, sys.platform)
        return "unavailable", f"its engine runs on {systems} alone, and this is {here}", ""
    if missing := missing_modules(manifest.requires):
        install = manifest.install or "pip install " + " ".join(missing)
        return "not installed", _not_installed(missing), install
    if len(clash := [name for name in manifest.conflicts if _has_distribution(name)]) > 1:
        return (
            "conflict",
            f"{' and '.join(clash)} are installed, which overwrite each other's files",
            f"pip uninstall {' '.join(clash)}, then install the one that you want",
        )
    return "available", "", ""


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
    except Exception:  # noqa: BLE001 - what is wrong with it is told where it is used
        return True


def _has_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def said(exc: BaseException) -> str:
    """What an exception of somebody else's says, on one line."""
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - it is somebody else's
        text = ""
    return f"{type(exc).__name__}: {text}".splitlines()[0].removesuffix(": ")


def _not_there(name: str) -> PluginRow:
    return PluginRow(
        name=name,
        distribution="?",
        version="?",
        state="not installed",
        reason="PERFUSE_PLUGINS names it, and no plugin of this name is installed",
        remedy="install it, or take it out there",
    )


def _not_installed(missing: Sequence[str]) -> str:
    return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"


def _remedy(row: PluginRow) -> str:
    return f"update or uninstall {row.distribution}, or: perfuse plugin disable {row.name}"


def _instantiate(reference: str, kind: type[_T], what: str) -> _T:
    try:
        with _not_printing():
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
    """The host of this process.

    ``PERFUSE_PLUGINS``, if set, names those to load; ``PERFUSE_STRICT=1`` refuses any that is
    broken, incompatible or in conflict.

    Raises:
        PluginError: a plugin is at fault and ``PERFUSE_STRICT`` is set.
        ConfigError: the file that says what is disabled is damaged.
    """
    found = PluginHost(allowed_plugins())
    if is_strict():
        found.check()
    return found
