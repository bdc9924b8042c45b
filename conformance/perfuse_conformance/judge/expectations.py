"""Failures that a plugin knows of: exact cases, each with a reason, a link and a day it ends.

A plugin keeps them in ``conformance.toml``:

    [[expect]]
    id = "component/unet/float16/static/late"
    reason = "The driver's float16 softmax overflows."
    link = "https://example.org/issues/12"
    expires = 2027-01-31
    model = "shapes"   # only with this model
    device = "cpu"     # only on this device

An expected failure is no failure of the run, and grants no level. The suite's maintainers may grant
one with an entry in ``waivers.toml`` beside this module, which also names the backend.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from perfuse.errors import ConfigError
from perfuse.sources import read_toml
from perfuse_conformance.cases.catalogue import LEVELS, Capability
from perfuse_conformance.judge.levels import claim_of
from perfuse_conformance.judge.results import Result, Run, Status

__all__ = [
    "LONGEST",
    "WAIVERS",
    "Expectation",
    "Expectations",
    "apply",
    "expect_one",
    "expected",
    "read_expectations",
    "read_waivers",
]

#: An entry ends at most this much after the day of the run.
LONGEST = datetime.timedelta(days=180)
#: The suite's own file.
WAIVERS = Path(__file__).with_name("waivers.toml")

_PATTERN = set("*?[]")
#: The level of a case by the first word of its id.
_LEVEL_OF = {
    "host": "L0",
    "refusal": "L1",
    "component": "L1",
    "contract": "L1",
    "weights": "L2",
    "soak": "L2",
    "trial": "L2",
    "forced": "L2",
    "draw": "L2",
    "repeat": "L2",
    "quality": "L3",
}
_PASSED = (Status.PASS, Status.QUALITY_WARNING, Status.PASS_FALLBACK, Status.UNDER_DECLARED)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """One case that fails."""

    #: The case's id, whole.
    id: str
    reason: str
    link: str
    #: The last day.
    expires: datetime.date
    #: Applies only to this model: the value of ``--model``, or the last part of its path.
    model: str | None = None
    #: Only on this device, as the backend names it.
    device: str | None = None
    #: Of a waiver: the backend's name.
    backend: str | None = None

    def concerns(self, *, model: str, device: str, backend: str) -> bool:
        """Whether it is meant for a run."""
        return (
            self.model in (None, model, PurePath(model).name)
            and self.device in (None, device)
            and self.backend in (None, backend)
        )


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """A file's entries; none where there is no file."""

    entries: tuple[Expectation, ...] = ()
    #: What it is called in messages.
    source: str = "conformance.toml"


def read_expectations(path: Path) -> Expectations:
    """Read a plugin's ``conformance.toml``.

    Raises:
        ConfigError: it cannot be read, or an entry lacks something, has something unknown, or is
            not of one exact case.
    """
    return _read(path, table="expect", optional=("model", "device"))


def read_waivers(path: Path = WAIVERS) -> Expectations:
    """Read the suite's waivers; another file in tests.

    Raises:
        ConfigError: as ``read_expectations``.
    """
    return _read(path, table="waive", required=("backend",), optional=("model", "device"))


def apply(
    expectations: Expectations,
    results: Sequence[Result],
    *,
    today: datetime.date,
    model: str,
    device: str,
    backend: str = "",
    level: str = LEVELS[-1],
    waivers: Expectations | None = None,
) -> tuple[list[Result], list[str]]:
    """Mark each result as expected or not.

    A failure with a valid entry becomes ``XFAIL``, or ``WAIVED`` where the suite grants it; a case
    that passes in spite of one becomes ``XPASS``.

    Args:
        expectations: What the plugin says.
        results: Of one run.
        today: The day that counts for what has expired.
        model: The run's model; an entry for another one is left alone.
        device: The run's device, likewise.
        backend: The backend's name, for waivers.
        level: The highest that was run; entries of cases above it are not looked for.
        waivers: The suite's own unless a test gives others.

    Returns:
        The results, and a line for everything that fails the run: an entry that has expired, that
        ends too far ahead, that no case matches, or whose case does not fail.
    """
    concerned = [
        entry
        for entry in expectations.entries
        if entry.concerns(model=model, device=device, backend=backend)
    ]
    complaints = []
    valid: dict[str, Expectation] = {}
    ids = {result.id for result in results}
    for entry in concerned:
        complaint = _rotten(entry, ids, today, level)
        if complaint is not None:
            complaints.append(f"{expectations.source}: {entry.id}: {complaint}")
        else:
            valid[entry.id] = entry
    granted = {
        waiver.id
        for waiver in (waivers if waivers is not None else read_waivers()).entries
        if waiver.expires >= today and waiver.concerns(model=model, device=device, backend=backend)
    }
    judged = []
    for result in results:
        known = valid.get(result.id)
        if known is None:
            judged.append(result)
            continue
        judged.append(_expected(result, known, waived=result.id in granted))
        if judged[-1].status is Status.XPASS or result.status is Status.NOT_SUPPORTED:
            complaints.append(
                f"{expectations.source}: {known.id}: it does not fail, it is {result.status}; "
                "remove the entry"
            )
    return judged, complaints


def expected(run: Run, path: Path | None) -> tuple[Run, list[str]]:
    """A run with a plugin's expectations file applied, and the level that results.

    Args:
        run: Every case of its level.
        path: The file; without one the run stays as it is.

    Raises:
        ConfigError: as ``read_expectations``.
    """
    if path is None:
        return run, []
    results, complaints = apply(
        read_expectations(path),
        run.results,
        today=_today(),
        model=run.run["model"],
        device=run.backend["device"],
        backend=run.backend["target"].partition(":")[0],
        level=run.run["level"],
    )
    capabilities = {_triple(key): Capability(**said) for key, said in run.capabilities.items()}
    claim = claim_of(results, capabilities, run.run["level"])
    return replace(run, results=tuple(results), claim=claim), complaints


def expect_one(
    result: Result, path: Path | None, *, model: str, device: str, backend: str = ""
) -> Result:
    """One result with a plugin's expectations file applied; arguments as of ``apply``.

    Raises:
        ConfigError: as ``read_expectations``.
    """
    if path is None:
        return result
    results, _ = apply(
        read_expectations(path),
        [result],
        today=_today(),
        model=model,
        device=device,
        backend=backend,
    )
    return results[0]


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _triple(key: str) -> tuple[str, str, str]:
    component, precision, mode = key.split("/")
    return component, precision, mode


def _rotten(entry: Expectation, ids: set[str], today: datetime.date, level: str) -> str | None:
    """Why an entry does not hold, or ``None``."""
    if entry.expires < today:
        return f"it expired on {entry.expires}; mend the case, or say why it takes longer"
    if entry.expires - today > LONGEST:
        return (
            f"it ends on {entry.expires}, more than {LONGEST.days} days ahead; "
            f"the last day to name is {today + LONGEST}"
        )
    of = _LEVEL_OF.get(entry.id.partition("/")[0])
    if entry.id not in ids and (of is None or of <= level):
        return "no case of the run has this id; correct or remove it"
    return None


def _expected(result: Result, entry: Expectation, *, waived: bool) -> Result:
    if result.status.failed:
        return replace(
            result,
            status=Status.WAIVED if waived else Status.XFAIL,
            reason=(
                f"expected until {entry.expires}: {entry.reason} ({entry.link}); {result.reason}"
            ),
        )
    if result.status in _PASSED:
        return replace(
            result,
            status=Status.XPASS,
            reason=f"it passes; it was expected to fail: {entry.reason} ({entry.link})",
        )
    return result


# Reading


def _read(
    path: Path, *, table: str, required: tuple[str, ...] = (), optional: tuple[str, ...]
) -> Expectations:
    data = read_toml(path, error=ConfigError, remedy="Mend or remove it.")
    others = sorted(set(data) - {table})
    if others:
        raise ConfigError(f"{path} has {', '.join(others)}; it may have [[{table}]] alone.")
    tables = data.get(table, [])
    if not isinstance(tables, list):
        raise ConfigError(f"{path} sets {table} to {tables!r}; write tables, [[{table}]].")
    entries = []
    names = ("id", "reason", "link", "expires", *required)
    for number, fields in enumerate(tables, 1):
        problem = _problem(fields, names, optional)
        if problem is not None:
            name = fields.get("id", "no id") if isinstance(fields, Mapping) else "no table"
            raise ConfigError(f"{path}, entry {number} ({name}): {problem}.")
        entries.append(Expectation(**fields))
    keys = [(entry.id, entry.model, entry.device, entry.backend) for entry in entries]
    for number, key in enumerate(keys, 1):
        if key in keys[: number - 1]:
            raise ConfigError(f"{path}, entry {number} ({key[0]}): it is there twice.")
    return Expectations(entries=tuple(entries), source=str(path))


def _problem(fields: Any, required: Sequence[str], optional: Sequence[str]) -> str | None:
    """What is wrong with an entry, or ``None``."""
    if not isinstance(fields, Mapping):
        return f"it is {fields!r}, not a table"
    for name in required:
        if name not in fields:
            return f"it has no {name}; it takes {', '.join(required)}"
    for name, value in fields.items():
        if name not in required and name not in optional:
            return f"it has {name!r}; it may have {', '.join((*required, *optional))}"
        if name == "expires":
            # A date with a time is a date to Python as well.
            if type(value) is not datetime.date:
                return f"expires is {value!r}; write a date, as in expires = 2027-01-31"
        elif not isinstance(value, str) or not value.strip():
            return f"{name} is {value!r}; write some words"
    if _PATTERN & set(fields["id"]):
        return "its id is a pattern; name one case, by the id that the run prints"
    if not fields["link"].startswith("https://"):
        return f"link is {fields['link']!r}; give the https:// address where the failure is tracked"
    return None
