"""What each plugin declares: its manifests, read in a process of its own and kept.

They are read anew when the plugin's version or one of its files changes. So listing plugins, and
drawing with one of them, runs no other plugin's code: what hangs or dies when it is imported is a
row. Plugins that come with perfuse are imported here, which is quicker than to look for a record.
"""

import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
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

__all__ = ["Again", "Declaration", "Failed", "Here", "Told", "declarations", "tell"]

#: Which of the kept declarations are read again all the same.
Again = Literal["none", "failed", "all"]
#: Seconds for which it is kept that a plugin cannot be imported.
_FAILED_FOR = 3600.0


class Declaration(Protocol):
    """A plugin that can be asked for its manifests."""

    def ask(self, hook: str) -> Answer | None:
        """Its answer to a hook; ``None`` where it does not implement it.

        Raises:
            PluginError: what is wrong with the answer.
        """


@dataclass(frozen=True)
class Here:
    """A plugin that was imported in this process: it is asked when its answer is needed."""

    plugin: object

    @classmethod
    def load(cls, load: Callable[[], object]) -> "Here":
        """Import a plugin.

        Raises:
            PluginError: it cannot be imported, or breaks the contract.
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
    """What a plugin raised, on one line. Ctrl-C goes on, but where nobody can have pressed it."""
    if isinstance(exc, KeyboardInterrupt) and APART not in os.environ:
        raise exc
    return str(exc) if type(exc) is PluginError else said(exc)


@dataclass(frozen=True)
class Told:
    """A plugin that another process imported: what it answered there."""

    answers: Mapping[str, Answer]
    #: Hook to what was wrong with its answer.
    faults: Mapping[str, str]

    def ask(self, hook: str) -> Answer | None:
        if hook in self.faults:
            raise PluginError(self.faults[hook])
        return self.answers.get(hook)


@dataclass(frozen=True)
class Failed:
    """A plugin that cannot be asked."""

    #: ``"broken"`` or ``"crashed"``.
    state: str
    reason: str


def declarations(
    entries: Sequence[Entry], *, again: Again = "none", timeout: float = TIMEOUT
) -> list[Declaration | Failed]:
    """What each plugin declares, or why it cannot be asked.

    Args:
        entries: The plugins, each of which may run.
        again: Which of those that are kept are read again: none, those that failed, or all.
        timeout: Seconds that a plugin may take.
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
    """Whether it comes with perfuse: its plugins import nothing but manifests."""
    return entry.distribution == "perfuse"


def _load(entry: Entry) -> Declaration | Failed:
    try:
        return Here.load(entry.point.load)
    except PluginError as exc:
        return Failed("broken", str(exc))


def _kept(entry: Entry, again: Again) -> Declaration | Failed | None:
    """What is kept of a plugin; ``None`` where that is nothing, or is to be read again."""
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
    """What is missing may come with a library, a distribution or a variable."""
    record = _record(entry)
    return Record(
        names=("failed", *record.names[1:]),
        basis=lambda: {**record.basis(), "around": surroundings(), "folders": _path_times()},
    )


def _path_times() -> list[Any]:
    """When something was last installed."""
    return [[path, os.stat(path).st_mtime_ns] for path in sys.path if os.path.isdir(path)]


def _decoded(value: Mapping[str, Any]) -> Declaration | None:
    try:
        answers = {str(hook): from_plain(answer) for hook, answer in value["answers"].items()}
        for hook, answer in answers.items():
            read_answer(hook, answer)
        faults = {str(hook): str(fault) for hook, fault in value["faults"].items()}
    except Exception:  # noqa: BLE001 - it is no record of ours
        return None
    return Told(answers, faults)


def _read(children: Children, entry: Entry, timeout: float) -> Declaration | Failed:
    """Read a plugin in a process of its own, and keep what it says."""
    ended = children.run({"declare": entry.key}, timeout=timeout, plugin=entry.key)
    found, record, failure = _found(ended), _record(entry), _record_of_failure(entry)
    answer = dict(ended.answer or {})
    rests = answer.pop("rests", None)
    if not isinstance(found, Failed):
        record.write(answer, Rests.from_dict(rests))
        failure.forget()
        return found
    record.forget()
    failure.write(
        {"state": found.state, "reason": found.reason},
        Rests.from_dict(rests)
        if rests is not None
        else Rests.on(_source_files(entry.point.module)),
    )
    return found


def _found(ended: Ended) -> Declaration | Failed:
    if ended.answer is None:
        return Failed("crashed", f"{ended.crash}, while {ended.step}")
    if "reason" in ended.answer:
        return Failed("broken", str(ended.answer["reason"]))
    return _decoded(ended.answer) or Failed("broken", "what it declares is no plain data")


def _source_files(module: str) -> list[str]:
    """The files that importing a module begins with, found without importing it."""
    names = module.split(".")
    files: list[str] = []
    try:
        spec = importlib.util.find_spec(names[0])
        for end in range(2, len(names) + 2):
            if spec is None:
                break
            if spec.origin is not None:
                files.append(spec.origin)
            spec = importlib.machinery.PathFinder.find_spec(
                ".".join(names[:end]), spec.submodule_search_locations
            )
    except (ImportError, ValueError, AttributeError):
        pass
    return files


def tell(entry: Entry) -> dict[str, Any]:
    """What a plugin declares as plain data: what `declarations` asks another process for."""
    before = set(sys.modules)
    try:
        plugin = Here.load(entry.point.load)
    except PluginError as exc:
        return {"reason": str(exc), "rests": _rests(entry, before)}
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
        "rests": _rests(entry, before),
    }


def _rests(entry: Entry, before: Collection[str]) -> dict[str, Any]:
    """On what importing a plugin brought in; its version is compared already."""
    rests = loaded_modules([entry.point.module.partition(".")[0]], since=before).to_dict()
    rests["distributions"].pop(entry.distribution, None)
    return rests
