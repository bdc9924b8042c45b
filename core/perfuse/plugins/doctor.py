"""Examines every plugin and backend in child processes; one that hangs or crashes is reported.

Nothing here imports a plugin; ``perfuse.plugins.probe`` does, in processes with a time limit. A
backend's answer is cached until a version, a driver or the environment changes.
"""

from collections.abc import Collection, Mapping
from typing import Any

from perfuse import __version__
from perfuse.contract.hooks import BackendManifest
from perfuse.errors import BackendNotFoundError
from perfuse.plugins.children import TIMEOUT, Children
from perfuse.plugins.disabled import key
from perfuse.plugins.host import PluginHost
from perfuse.plugins.installed import allowed_plugins
from perfuse.plugins.kept import Record, Rests, surroundings

__all__ = ["TIMEOUT", "examine"]

#: The states in which an answer is cached; broken or crashed backends are asked again.
_LASTING = ("available", "unavailable")


def examine(
    *,
    names: Collection[str] = (),
    timeout: float = TIMEOUT,
    thorough: bool = True,
    refresh: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """List every plugin and every backend, with each backend asked in a child process.

    Args:
        names: The backends to ask; all of them by default.
        timeout: Seconds that a process may take.
        thorough: Whether to ask also what the backends support, and to include what they print.
        refresh: Whether to ignore cached answers; ``thorough`` always does.

    Returns:
        ``plugins`` and ``backends``, rows of plain data. A plugin that cannot be used is listed
        among the backends too. A row with cached devices has ``found``: the time they were found,
        in seconds since 1970.

    Raises:
        BackendNotFoundError: a name is not that of a backend.
        ConfigError: the file of disabled plugins is damaged.
    """
    refresh = refresh or thorough
    host = PluginHost(allowed_plugins(), again="all" if refresh else "failed", timeout=timeout)
    listing, manifests = host.listing(), host.backends()
    rows = listing["backends"]
    if unknown := sorted(set(names) - {row["backend"] for row in rows}):
        raise BackendNotFoundError(
            f"Backend {unknown[0]!r} was asked for; found: "
            f"{', '.join(row['backend'] for row in rows) or 'none'}."
        )
    if names:
        rows = [row for row in rows if row["backend"] in names]
    children = Children()

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        if row["state"] != "available":
            return row
        record = _record(row, manifests[row["backend"]])
        if not refresh and (kept := record.read()) is not None and _is_answer(kept):
            return {**row, **kept["answer"], "found": kept["written"]}
        return _asked(children, row, record, timeout, thorough)

    return {"plugins": listing["plugins"], "backends": children.map(ask, rows)}


def _record(row: Mapping[str, Any], manifest: BackendManifest) -> Record:
    return Record(
        names=("devices", row["distribution"], row["plugin"], row["backend"]),
        basis=lambda: {
            "perfuse": __version__,
            "version": row["version"],
            "impl": manifest.impl,
            "requires": list(manifest.requires),
            "around": surroundings((row["backend"], *manifest.requires)),
        },
    )


def _is_answer(kept: Mapping[str, Any]) -> bool:
    """Whether a cached value has the form of a backend's answer."""
    answer = kept.get("answer")
    return (
        isinstance(answer, dict)
        and answer.keys() <= {"state", "reason", "remedy", "devices"}
        and answer.get("state", "available") in _LASTING
        and all(isinstance(answer.get(name, ""), str) for name in ("reason", "remedy"))
        and isinstance(answer.get("devices"), list)
        and all(_is_device(device) for device in answer["devices"])
    )


def _is_device(device: object) -> bool:
    return (
        isinstance(device, dict)
        and device.keys() == {"target", "description", "precisions"}
        and isinstance(device["target"], str)
        and isinstance(device["description"], str)
        and isinstance(device["precisions"], list)
        and all(isinstance(one, str) for one in device["precisions"])
    )


def _asked(
    children: Children, row: dict[str, Any], record: Record, timeout: float, thorough: bool
) -> dict[str, Any]:
    """The row of a backend with what it answered, which is kept where it will last."""
    request = {"backend": row["backend"], "thorough": thorough}
    ended = children.run(request, timeout=timeout, plugin=key(row["distribution"], row["plugin"]))
    answer = dict(ended.answer or {})
    rests = answer.pop("rests", None)
    if ended.crash is not None:
        answer |= {"state": "crashed", "reason": f"{ended.crash}, while {ended.step}"}
    if answer.get("state") in ("broken", "crashed"):
        answer["remedy"] = (
            f"reinstall its engine or {row['distribution']}, or: perfuse plugin disable "
            f"{row['plugin']}"
        )
        if thorough:
            answer["output"] = ended.output
    elif answer.get("state") == "unavailable":
        answer["remedy"] = "install the device's driver, or choose another backend"
    lasting = {
        name: answer[name] for name in ("state", "reason", "remedy", "devices") if name in answer
    }
    if rests is not None and lasting.get("state", "available") in _LASTING:
        record.write({"answer": lasting}, Rests.from_dict(rests))
    else:
        record.forget()
    return {**row, **answer, "seconds": ended.seconds}
