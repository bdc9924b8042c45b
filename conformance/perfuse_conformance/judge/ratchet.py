"""Checks the suite's limits: none is raised, removed or far from the observed errors unnoticed.

``python -m perfuse_conformance.ratchet`` prints a line an offence and exits with 1 if there is one;
with ``--release`` it prints the ``[released]`` table that the limits of now make.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perfuse.sources import read_toml
from perfuse_conformance import SUITE_VERSION
from perfuse_conformance.judge.tolerances import (
    TOLERANCES,
    Limit,
    Tolerances,
    TolerancesError,
    error_of,
    named,
    problems,
)

__all__ = ["LARGEST_SLACK", "main", "offences", "released_table"]

#: A limit further than this from what was observed would not see a backend that got worse. For
#: decibels it is about 12 dB.
LARGEST_SLACK = 4.0

Entry = Mapping[str, Any]
Version = tuple[int, int]


def offences(path: Path = TOLERANCES, *, suite_version: str = SUITE_VERSION) -> list[str]:
    """What is wrong with a file of limits, a line each.

    - its form: an unknown key, a missing one, an entry twice, a number that is not finite;
    - a version that is not the suite's;
    - a limit more than ``LARGEST_SLACK`` times what was observed, or within it;
    - one looser than in the last release (limit, floor or resolution) that does not say from what,
      in which new version, and why; and one of the last release that is gone.

    Args:
        path: The suite's own file; another one in tests.
        suite_version: What its version has to be.
    """
    try:
        data = read_toml(path, error=TolerancesError, remedy="Mend it.")
    except TolerancesError as exc:
        return [str(exc)]
    found = list(problems(data))
    if found:
        return found
    if data["version"] != suite_version:
        found.append(
            f"the file: its version is {data['version']}, the suite's {suite_version}; raise both"
        )
    for limit in Tolerances.read(path).entries:
        found += _slack(limit)
    entries = {named(entry): entry for entry in data["limit"]}
    released = _version(data["released"]["version"])
    if released > _version(data["version"]):
        found.append("released: its version is beyond the file's")
    for before in data["released"]["limits"]:
        now = entries.get(named(before))
        if now is None:
            found.append(f"{named(before)}: it was released and is gone; a limit stays")
        else:
            found += _loosening(now, before, released, _version(data["version"]))
    return found


def _slack(limit: Limit) -> Iterator[str]:
    name = " ".join(limit.key)
    if error_of(limit.metric, limit.observed_p95) > error_of(limit.metric, limit.limit):
        yield (
            f"{name}: observed_p95 {limit.observed_p95:g} is beyond the limit {limit.limit:g}; "
            "right results would fail"
        )
    elif not limit.slack <= LARGEST_SLACK:
        yield (
            f"{name}: the limit {limit.limit:g} is {limit.slack:.3g} times the observed "
            f"{limit.observed_p95:g}; at most {LARGEST_SLACK:g} times"
        )


def _loosening(now: Entry, before: Entry, released: Version, version: Version) -> Iterator[str]:
    """What a limit that is looser than its released self fails to say."""
    ways = _looser(now, before)
    if not ways:
        return
    what = f"{named(now)}: it is looser than in the last release ({', '.join(ways)})"
    said = now.get("loosened")
    if said is None:
        yield f"{what} and has no loosened = {{from = …, in_version = …, reason = …}}"
        return
    if said["from"] != before["limit"]:
        yield f"{what}; loosened.from is {said['from']:g}, the release had {before['limit']:g}"
    if not released < _version(said["in_version"]) <= version:
        yield (
            f"{what}; loosened.in_version is {said['in_version']}: it has to be after the release "
            "and not after this version. Raise the suite's minor version"
        )


def _looser(now: Entry, before: Entry) -> list[str]:
    metric = now["metric"]
    ways = []
    if error_of(metric, now["limit"]) > error_of(metric, before["limit"]):
        ways.append(f"limit {before['limit']:g} to {now['limit']:g}")
    if now.get("floor", 0.0) > before.get("floor", 0.0):
        ways.append(f"floor {before.get('floor', 0.0):g} to {now['floor']:g}")
    if _resolution(now) > _resolution(before):
        ways.append(f"resolution {before.get('resolution', 'none')} to {now['resolution']:g}")
    return ways


def _resolution(entry: Entry) -> float:
    value = entry.get("resolution")
    return 0.0 if value is None else error_of(entry["metric"], value)


def _version(text: str) -> Version:
    major, minor = text.split(".")
    return int(major), int(minor)


def released_table(tolerances: Tolerances) -> str:
    """The ``[released]`` table that records limits as those of a release, as TOML."""
    lines = []
    for entry in tolerances.entries:
        pairs = [f'{name} = "{getattr(entry, name)}"' for name in ("kind", "precision", "metric")]
        pairs += [f'bound = "{entry.bound}"', f"limit = {entry.limit!r}"]
        if entry.floor != 0:
            pairs.append(f"floor = {entry.floor!r}")
        if entry.resolution is not None:
            pairs.append(f"resolution = {entry.resolution!r}")
        lines.append(f"  {{ {', '.join(pairs)} }},\n")
    head = f'[released]\nversion = "{tolerances.version}"\nlimits = [\n'
    return f"{head}{''.join(lines)}]\n"


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if list(arguments) == ["--release"]:
        print(released_table(Tolerances.load()), end="")
        return 0
    if arguments:
        print("usage: python -m perfuse_conformance.ratchet [--release]", file=sys.stderr)
        return 2
    found = offences()
    for line in found:
        print(line)
    return 1 if found else 0
