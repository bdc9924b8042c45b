"""The plugins that are installed, by their entry points alone: nothing here imports one."""

import importlib.metadata
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from perfuse.disabled import distribution_of, is_named, key_of, read_disabled
from perfuse.errors import ConfigError, PluginError

__all__ = [
    "FAULTS",
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


def entry_points() -> list[EntryPoint]:
    """The entry points of every plugin, perfuse's own first. Nothing is imported."""
    entries = importlib.metadata.entry_points()
    found = sorted(entries.select(group=GROUP), key=_order)
    ours = {key_of(entry) for entry in found}
    for group in sorted(g for g in entries.groups if _MAJOR.fullmatch(g) and g != GROUP):
        # A plugin may be made for several majors; this host takes the one for its own.
        others = [entry for entry in entries.select(group=group) if key_of(entry) not in ours]
        found += sorted(others, key=_order)
    return found


def command_entries() -> dict[str, EntryPoint]:
    """The commands that distributions add to the command line, by name. Nothing is imported."""
    entries = importlib.metadata.entry_points(group=COMMANDS)
    return {entry.name: entry for entry in sorted(entries, key=_order, reverse=True)}


def _order(entry: EntryPoint) -> tuple[bool, str, str]:
    # The first to take a name keeps it: no plugin takes one of ours, whatever it is called.
    return distribution_of(entry)[0] != "perfuse", entry.name, key_of(entry)


def survey(allow: Collection[str] | None = None) -> list[tuple[EntryPoint, PluginRow]]:
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
        name, version = distribution_of(entry)
        row = PluginRow(
            name=entry.name,
            distribution=name,
            version=version,
            state=state,
            reason=reason,
            remedy=remedy,
        )
        found.append((entry, row))
        if state == "enabled":
            taken.add(entry.name)
    return found


def _standing(
    entry: EntryPoint, allow: Collection[str] | None, off: Collection[str], taken: set[str]
) -> tuple[str, str, str]:
    """State, reason and remedy of an entry point that nobody has imported."""
    if allow is not None and not is_named(entry, allow):
        return "disabled", "it is not in PERFUSE_PLUGINS", "add it there"
    if key_of(entry) in off:
        return "disabled", "it was switched off", f"perfuse plugin enable {entry.name}"
    if entry.group != GROUP:
        return (
            "incompatible",
            f"it is made for {entry.group}, this perfuse has {GROUP}",
            f"install a version of it for {GROUP}, or the perfuse that has {entry.group}",
        )
    if entry.name in taken:
        other = distribution_of(entry)[0]
        return (
            "broken",
            "another plugin has the same name",
            f"uninstall one of the two, or: perfuse plugin disable {other}",
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
