"""The installed plugins, read from their entry points without importing them."""

import importlib.metadata
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from perfuse.errors import ConfigError, PluginError
from perfuse.plugins.disabled import is_named, key, read_disabled

__all__ = [
    "FAULTS",
    "Entry",
    "PluginRow",
    "allowed_plugins",
    "check_rows",
    "command_entries",
    "entry_points",
    "is_strict",
    "survey",
]

#: The major version is in the group's name, so a plugin for another major is never imported.
GROUP = "perfuse.v1"
#: Entry points that name click commands.
COMMANDS = "perfuse.commands"
_MAJOR = re.compile(r"perfuse\.v\d+")
#: The states that ``PERFUSE_STRICT`` turns into errors; disabled or not installed are no faults.
FAULTS = ("broken", "crashed", "incompatible", "conflict")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry point with the name and version of its distribution."""

    point: EntryPoint
    distribution: str
    version: str

    @property
    def name(self) -> str:
        return self.point.name

    @property
    def key(self) -> str:
        """``DISTRIBUTION:NAME``."""
        return key(self.distribution, self.name)


@dataclass(frozen=True, kw_only=True)
class PluginRow:
    """One entry point and its state."""

    name: str
    distribution: str
    version: str
    #: ``"enabled"`` before it is imported, ``"loaded"`` after; or ``"broken"``, ``"incompatible"``,
    #: ``"crashed"``, ``"disabled"``, ``"not installed"``.
    state: str
    reason: str = ""
    remedy: str = ""
    #: What importing it changes for all code of a process.
    changes: tuple[str, ...] = ()

    def as_backend(self) -> dict[str, Any]:
        """The plugin as a row of the list of backends, if it cannot be used."""
        return {
            "backend": self.name,
            "state": self.state,
            "reason": self.reason,
            "remedy": self.remedy,
            "summary": "",
            "exports": [],
            "interprets": "",
            "interpreters": [],
            "plugin": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "devices": [],
            "changes": list(self.changes),
        }


def check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise if any plugin or backend is at fault.

    Raises:
        PluginError: the message names every plugin and backend at fault.
    """
    faults = [
        f"{row['backend']} of {row['distribution']} {row['version']} ({row['state']}: "
        f"{row['reason']})"
        for row in rows
        if row["state"] in FAULTS
    ]
    if faults:
        raise PluginError(
            f"PERFUSE_STRICT allows no plugin that is at fault; {', '.join(faults)}. Repair or "
            "disable them (perfuse plugin disable NAME), or unset PERFUSE_STRICT."
        )


def entry_points() -> list[Entry]:
    """The entry points of every plugin, perfuse's own first. Nothing is imported."""
    points = importlib.metadata.entry_points()
    found = _read(points.select(group=GROUP))
    ours = {entry.key for entry in found}
    for group in sorted(g for g in points.groups if _MAJOR.fullmatch(g) and g != GROUP):
        # A plugin may support several major versions; take the entry point for this one.
        found += [entry for entry in _read(points.select(group=group)) if entry.key not in ours]
    return found


def command_entries() -> dict[str, Entry]:
    """The commands that distributions add to the command line, by name. Nothing is imported."""
    entries = _read(importlib.metadata.entry_points(group=COMMANDS))
    return {entry.name: entry for entry in reversed(entries)}


def _read(points: Iterable[EntryPoint]) -> list[Entry]:
    known: dict[int, tuple[str, str]] = {}  # each distribution's metadata is parsed once
    found = []
    for point in points:
        if id(point.dist) not in known:
            known[id(point.dist)] = _name_and_version(point)
        name, version = known[id(point.dist)]
        found.append(Entry(point=point, distribution=name, version=version))
    # perfuse's own come first and the first keeps a name, so no plugin can take one of perfuse's.
    return sorted(
        found,
        key=lambda entry: (entry.distribution != "perfuse", entry.name, entry.key),
    )


def _name_and_version(point: EntryPoint) -> tuple[str, str]:
    if point.dist is None:
        return "?", "?"
    metadata = point.dist.metadata
    return metadata["Name"] or "?", metadata["Version"] or "?"


def survey(allow: Collection[str] | None = None) -> list[tuple[Entry, PluginRow]]:
    """Every entry point with its state, found without importing it.

    Args:
        allow: Names of plugins or distributions; all others are disabled. ``None`` allows all.

    Raises:
        ConfigError: the file of disabled plugins is damaged.
    """
    off = read_disabled()
    taken = {"perfuse"}  # the name of core's own plugin
    found = []
    for entry in entry_points():
        state, reason, remedy = _state_of(entry, allow, off, taken)
        row = PluginRow(
            name=entry.name,
            distribution=entry.distribution,
            version=entry.version,
            state=state,
            reason=reason,
            remedy=remedy,
        )
        found.append((entry, row))
        if state == "enabled":
            taken.add(entry.name)
    return found


def _state_of(
    entry: Entry, allow: Collection[str] | None, off: Collection[str], taken: set[str]
) -> tuple[str, str, str]:
    """State, reason and remedy of an entry point, without importing it."""
    if allow is not None and not is_named(entry.key, allow):
        return "disabled", "it is not in PERFUSE_PLUGINS", "add it there"
    if entry.key in off:
        return "disabled", "it was switched off", f"perfuse plugin enable {entry.name}"
    if entry.point.group != GROUP:
        return (
            "incompatible",
            f"it is made for {entry.point.group}, this perfuse has {GROUP}",
            f"install a version of it for {GROUP}, or the perfuse that has {entry.point.group}",
        )
    if entry.name in taken:
        return (
            "broken",
            "another plugin has the same name",
            f"uninstall one of the two, or: perfuse plugin disable {entry.key}",
        )
    return "enabled", "", ""


def is_strict() -> bool:
    """Whether ``PERFUSE_STRICT`` is set.

    Raises:
        ConfigError: its value is neither yes nor no.
    """
    value = os.environ.get("PERFUSE_STRICT", "").strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("", "0", "false", "no", "off"):
        return False
    raise ConfigError(f"PERFUSE_STRICT is {value!r}; set it to 1, or unset it.")


def allowed_plugins() -> list[str] | None:
    """The plugins that ``PERFUSE_PLUGINS`` names; ``None`` if it is not set: all are allowed."""
    allowed = os.environ.get("PERFUSE_PLUGINS")
    if allowed is None:
        return None
    return [name.strip() for name in allowed.split(",") if name.strip()]
