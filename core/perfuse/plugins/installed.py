"""The plugins that are installed, by their entry points alone: nothing here imports one."""

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
#: What ``PERFUSE_STRICT`` turns into errors. To be switched off, or not installed, is no fault.
FAULTS = ("broken", "crashed", "incompatible", "conflict")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry point with what its distribution says of itself, which is read once."""

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
    """One entry point and what became of it."""

    name: str
    distribution: str
    version: str
    #: ``"enabled"`` before it is imported, ``"loaded"`` after; or ``"broken"``, ``"incompatible"``,
    #: ``"crashed"``, ``"disabled"``, ``"not installed"``.
    state: str
    reason: str = ""
    remedy: str = ""

    def as_backend(self) -> dict[str, Any]:
        """The row among those of the backends, for a plugin that cannot be used."""
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
        }


def check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to go on where anything is wrong with any plugin or backend.

    Raises:
        PluginError: it names every one that is at fault.
    """
    faults = [
        f"{row['backend']} of {row['distribution']} {row['version']} ({row['state']}: "
        f"{row['reason']})"
        for row in rows
        if row["state"] in FAULTS
    ]
    if faults:
        raise PluginError(
            f"PERFUSE_STRICT allows no plugin that is at fault; {', '.join(faults)}. Mend or "
            "disable them (perfuse plugin disable NAME), or unset PERFUSE_STRICT."
        )


def entry_points() -> list[Entry]:
    """The entry points of every plugin, perfuse's own first. Nothing is imported."""
    points = importlib.metadata.entry_points()
    found = _read(points.select(group=GROUP))
    ours = {entry.key for entry in found}
    for group in sorted(g for g in points.groups if _MAJOR.fullmatch(g) and g != GROUP):
        # A plugin may be made for several majors; this host takes the one for its own.
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
    # The first to take a name keeps it: no plugin takes one of ours, whatever it is called.
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
    """Every entry point with what can be said of it without importing it.

    Args:
        allow: Names of plugins or of distributions; every other one is disabled.

    Raises:
        ConfigError: the file that says what is disabled is damaged.
    """
    off = read_disabled()
    taken = {"perfuse"}  # what core itself brings goes by this name
    found = []
    for entry in entry_points():
        state, reason, remedy = _standing(entry, allow, off, taken)
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


def _standing(
    entry: Entry, allow: Collection[str] | None, off: Collection[str], taken: set[str]
) -> tuple[str, str, str]:
    """State, reason and remedy of an entry point that nobody has imported."""
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
        ConfigError: to something that is neither yes nor no.
    """
    value = os.environ.get("PERFUSE_STRICT", "").strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("", "0", "false", "no", "off"):
        return False
    raise ConfigError(f"PERFUSE_STRICT is {value!r}; set it to 1, or unset it.")


def allowed_plugins() -> list[str] | None:
    """What ``PERFUSE_PLUGINS`` names; ``None`` where it is not set and all are allowed."""
    allowed = os.environ.get("PERFUSE_PLUGINS")
    if allowed is None:
        return None
    return [name.strip() for name in allowed.split(",") if name.strip()]
