"""The manifests of each plugin, read in a child process and cached.

They are read again when the plugin's version or one of its files changes. Listing plugins, or using
one, therefore runs no other plugin's code, and a plugin whose import hangs or crashes is only
reported. Plugins that come with perfuse are imported directly, which is faster than the cache.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import pluggy

from perfuse import __version__
from perfuse.contract.hooks import API_VERSION, Hooks, check_hooks
from perfuse.errors import PluginError
from perfuse.plugins.children import APART, TIMEOUT, Children, Ended
from perfuse.plugins.importing import quiet, said
from perfuse.plugins.installed import Entry
from perfuse.plugins.kept import Record, Rests, loaded_modules, surroundings
from perfuse.plugins.manifests import HOOKS, Answer, from_plain, read_answer, to_plain
from perfuse.plugins.state import State

__all__ = ["Again", "Declaration", "Failed", "Here", "Told", "declarations", "tell"]

#: Which cached declarations to read again: none, the failed ones, or all.
Again = Literal["none", "failed", "all"]
#: Seconds for which a failed import is cached.
_FAILED_FOR = 3600.0
#: The most files of a failed plugin that are watched for changes.
_MOST_FILES = 500


class Declaration(Protocol):
    """A plugin that can be asked for its manifests."""

    @property
    def changes(self) -> Sequence[str]:
        """What importing it changed for all code of the process, if that was another than this."""

    def ask(self, hook: str) -> Answer | None:
        """The plugin's answer to a hook; ``None`` if it does not implement the hook.

        Raises:
            PluginError: the hook failed, or its answer breaks the contract.
        """


@dataclass(frozen=True)
class Here:
    """A plugin that is imported in this process; its hooks are called when needed."""

    plugin: object
    changes: Sequence[str] = ()

    @classmethod
    def load(cls, load: Callable[[], object]) -> "Here":
        """Import a plugin.

        Raises:
            PluginError: the plugin cannot be imported, or breaks the contract.
        """
        try:
            with quiet():
                plugin = load()
                check_hooks(plugin)
                manager = pluggy.PluginManager("perfuse")
                manager.add_hookspecs(Hooks)
                manager.register(plugin)
        except BaseException as exc:
            raise PluginError(_why(exc)) from exc
        return cls(plugin)

    def ask(self, hook: str) -> Answer | None:
        implementation = getattr(self.plugin, hook, None)
        if implementation is None:
            return None
        try:
            with quiet():
                return read_answer(hook, implementation())
        except BaseException as exc:
            raised = "" if type(exc) is PluginError else "raised "
            raise PluginError(f"{hook} {raised}{_why(exc)}") from exc


def _why(exc: BaseException) -> str:
    """What a plugin raised, on one line. Ctrl-C is raised again, except in a child process."""
    if isinstance(exc, KeyboardInterrupt) and APART not in os.environ:
        raise exc
    return str(exc) if type(exc) is PluginError else said(exc)


@dataclass(frozen=True)
class Told:
    """The answers of a plugin that a child process imported."""

    answers: Mapping[str, Answer]
    #: Hook to the fault in its answer.
    faults: Mapping[str, str]
    changes: Sequence[str] = ()

    def ask(self, hook: str) -> Answer | None:
        if hook in self.faults:
            raise PluginError(self.faults[hook])
        return self.answers.get(hook)


@dataclass(frozen=True)
class Failed:
    """A plugin that cannot be used."""

    #: ``"broken"`` or ``"crashed"``.
    state: str
    reason: str


def declarations(
    entries: Sequence[Entry], *, again: Again = "none", timeout: float = TIMEOUT
) -> list[Declaration | Failed]:
    """What each plugin declares, or why it cannot be used.

    Args:
        entries: The plugins to read, none of them disabled.
        again: Which cached declarations to read again: none, the failed ones, or all.
        timeout: Seconds that reading one plugin may take.
    """
    found: list[Declaration | Failed | None] = [
        _load(entry) if _is_ours(entry) or APART in os.environ else _kept(entry, again)
        for entry in entries
    ]
    missing = [entry for entry, one in zip(entries, found, strict=True) if one is None]
    children = Children()
    read = iter(
        children.map(lambda entry: _read(children, entry, timeout), missing) if missing else []
    )
    return [one if one is not None else next(read) for one in found]


def _is_ours(entry: Entry) -> bool:
    """Whether the plugin comes with perfuse; such a plugin imports only manifests."""
    return entry.distribution == "perfuse"


def _load(entry: Entry) -> Declaration | Failed:
    try:
        return Here.load(entry.point.load)
    except PluginError as exc:
        return Failed("broken", str(exc))


def _kept(entry: Entry, again: Again) -> Declaration | Failed | None:
    """A plugin's cached declaration; ``None`` if there is none, or it is to be read again."""
    if again == "all":
        return None
    if (value := _record(entry).read()) is not None:
        return _decoded(value)
    return _kept_failure(entry) if again == "none" else None


def _kept_failure(entry: Entry) -> Failed | None:
    value = _record_of_failure(entry).read()
    if value is None or time.time() - value["written"] > _FAILED_FOR:
        return None
    state, reason = value.get("state"), value.get("reason")
    if state not in ("broken", "crashed") or not isinstance(reason, str):
        return None
    return Failed(state, reason)


def _record(entry: Entry) -> Record:
    return Record(
        names=("declared", entry.distribution, entry.name),
        basis=lambda: {
            "perfuse": [__version__, API_VERSION],
            "version": entry.version,
            "module": entry.point.value,
            "place": str(entry.point.dist.locate_file("")) if entry.point.dist else "",
        },
    )


def _record_of_failure(entry: Entry) -> Record:
    """The cache record of a failed import, invalid once a library or a variable changes."""
    record = _record(entry)
    return Record(
        names=("failed", *record.names[1:]),
        basis=lambda: {**record.basis(), "around": surroundings(), "folders": _path_times()},
    )


def _path_times() -> list[Any]:
    """The modification times of the folders on ``sys.path``: when something was installed."""
    return [[path, os.stat(path).st_mtime_ns] for path in sys.path if os.path.isdir(path)]


def _decoded(value: Mapping[str, Any]) -> Declaration | None:
    try:
        answers = {str(hook): from_plain(answer) for hook, answer in value["answers"].items()}
        for hook, answer in answers.items():
            read_answer(hook, answer)
        faults = {str(hook): str(fault) for hook, fault in value["faults"].items()}
        changes = tuple(str(one) for one in value["changes"])
    except Exception:  # noqa: BLE001 - the cache file is foreign or damaged
        return None
    return Told(answers, faults, changes)


def _read(children: Children, entry: Entry, timeout: float) -> Declaration | Failed:
    """Read a plugin's manifests in a child process, and cache them."""
    ended = children.run({"declare": entry.key}, timeout=timeout, plugin=entry.key)
    found, record, failure = _found(ended), _record(entry), _record_of_failure(entry)
    answer = dict(ended.answer or {})
    if not isinstance(found, Failed):
        record.write(answer, Rests.from_dict(answer.pop("rests")))
        failure.forget()
        return found
    record.forget()
    # What failed to be imported is no module of that process: its files are looked for here.
    failure.write(
        {"state": found.state, "reason": found.reason},
        Rests.on(_source_files(entry.point.module)),
    )
    return found


def _found(ended: Ended) -> Declaration | Failed:
    if ended.answer is None:
        return Failed("crashed", f"{ended.crash}, while {ended.step}")
    if "reason" in ended.answer:
        return Failed("broken", str(ended.answer["reason"]))
    return _decoded(ended.answer) or Failed("broken", "its manifests are not plain data")


def _source_files(module: str) -> list[str]:
    """The files and folders of a plugin's package, found without importing it."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None:
        return []
    files = [] if spec.origin is None else [Path(spec.origin)]
    for place in spec.submodule_search_locations or ():
        files += islice(Path(place).rglob("*.py"), _MOST_FILES)
    folders = {file.parent for file in files} if spec.submodule_search_locations else set()
    return sorted(str(path) for path in {*files, *folders})


def tell(entry: Entry) -> dict[str, Any]:
    """What a plugin declares, as plain data; `declarations` calls this in a child process."""
    before, state = set(sys.modules), State.now()
    try:
        plugin = Here.load(entry.point.load)
    except PluginError as exc:
        return {"reason": str(exc)}
    answers, faults = {}, {}
    for hook in HOOKS:
        try:
            answer = plugin.ask(hook)
            if answer is not None:
                answers[hook] = to_plain(answer)
        except PluginError as exc:
            faults[hook] = str(exc)
    return {
        "answers": answers,
        "faults": faults,
        "changes": state.changed(State.now()),
        "rests": _rests(entry, before),
    }


def _rests(entry: Entry, before: Collection[str]) -> dict[str, Any]:
    """The files and distributions that importing the plugin loaded, for the cache record."""
    rests = loaded_modules([entry.point.module.partition(".")[0]], since=before).to_dict()
    rests["distributions"].pop(entry.distribution, None)
    return rests
