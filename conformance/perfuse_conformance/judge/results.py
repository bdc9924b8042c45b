"""What a run found: plain data, written as JSON and read back, with a schema of its own version."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from perfuse.errors import PerfuseError
from perfuse.sources import read_json, write_file

__all__ = [
    "SCHEMA_VERSION",
    "Claim",
    "Metric",
    "Result",
    "ResultsError",
    "Run",
    "Status",
    "read_results",
    "results_schema",
]

#: A minor version adds fields; a major one changes existing ones.
SCHEMA_VERSION = "1.2"


class ResultsError(PerfuseError):
    """A results file cannot be read: truncated, of another schema, or not a results file."""


class Status(StrEnum):
    """What became of a case."""

    PASS = "PASS"
    #: It passed, with more than half of a limit used up.
    QUALITY_WARNING = "QUALITY_WARNING"
    #: It is right, and something other than the engine asked for computed it.
    PASS_FALLBACK = "PASS_FALLBACK"
    #: The backend declares that it cannot; a refusal case shows that it then refuses.
    NOT_SUPPORTED = "NOT_SUPPORTED"
    #: The backend declares that it cannot, and it can.
    UNDER_DECLARED = "UNDER_DECLARED"
    FAIL_COMPILE = "FAIL_COMPILE"
    FAIL_RUN = "FAIL_RUN"
    FAIL_MISMATCH = "FAIL_MISMATCH"
    #: A result holds NaN or infinity, or a picture is one colour.
    FAIL_NONFINITE = "FAIL_NONFINITE"
    #: The numbers may be right; names, shapes, dtypes or manners are not.
    FAIL_CONTRACT = "FAIL_CONTRACT"
    #: Neither refused nor right.
    FAIL_UNREFUSED = "FAIL_UNREFUSED"
    FAIL_TIMEOUT = "FAIL_TIMEOUT"
    FAIL_CRASH = "FAIL_CRASH"
    #: It fails, as the expectations file declares.
    XFAIL = "XFAIL"
    #: It passes, but the expectations file declares a failure.
    XPASS = "XPASS"
    #: It fails as expected, and the suite's maintainers waived it.
    WAIVED = "WAIVED"
    #: Something is not on this machine: the device, the engine, a measure's weights.
    ENV_MISSING = "ENV_MISSING"
    #: An earlier case took its program down, or the run was stopped.
    NOT_RUN = "NOT_RUN"

    @property
    def failed(self) -> bool:
        return self.name.startswith("FAIL") or self is Status.XPASS

    @property
    def executed(self) -> bool:
        """Whether the backend ran the case."""
        return self not in (Status.NOT_SUPPORTED, Status.ENV_MISSING, Status.NOT_RUN)

    @property
    def counts(self) -> bool:
        """Whether a level can be granted with it."""
        return self in (
            Status.PASS,
            Status.QUALITY_WARNING,
            Status.UNDER_DECLARED,
            Status.NOT_SUPPORTED,
            Status.WAIVED,
        )


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measured number and its limit."""

    #: ``rmse_ratio``, ``snr_db``, ``psnr_db``, ``ssim``, ``flip``, ``lpips``, ``agreement``.
    name: str
    #: ``None`` where it could not be computed, as for NaN.
    value: float | None
    #: ``None`` for a number that is shown and not judged.
    limit: float | None = None
    #: ``"max"`` where the value must not exceed the limit, ``"min"`` where it must reach it.
    bound: str = "max"

    @property
    def fits(self) -> bool:
        if self.limit is None:
            return True
        if self.value is None:
            return False
        return self.value <= self.limit if self.bound == "max" else self.value >= self.limit

    @property
    def used(self) -> float | None:
        """How much of the limit was used up, as an error: 0 is none of it, 1 is all of it.

        Decibels count as amplitudes (20 dB above the limit is a tenth of it). What is at best 1, as
        SSIM or agreement, counts by its distance to 1. ``None`` without a limit or without a value.
        """
        if self.limit is None or self.value is None:
            return None
        if self.name.endswith("_db"):
            excess = self.limit - self.value if self.bound == "min" else self.value - self.limit
            return float(10 ** (min(excess, 400.0) / 20))
        error, allowed = self.value, self.limit
        if self.bound == "min":
            error, allowed = 1 - self.value, 1 - self.limit
        if allowed <= 0:
            return 0.0 if error <= allowed else math.inf
        return max(error / allowed, 0.0)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One case of one backend."""

    #: ``"component/unet/float32/static/late"``: stable from version to version.
    id: str
    #: ``"L0"`` to ``"L3"``.
    level: str
    #: The profiles that it counts for: ``("dyn",)``, ``("fp16",)``; none for the level itself.
    profiles: tuple[str, ...] = ()
    status: Status
    #: A few words that do not change: ``"inputs-overwritten"``, ``"wrong-names"``.
    reason_code: str = ""
    #: What differed, by how much, where; for a person.
    reason: str = ""
    component: str | None = None
    #: The precision that was requested, and the one that the backend reports.
    precision: str | None = None
    executed_precision: str | None = None
    #: The worst of all outputs and calls.
    metrics: tuple[Metric, ...] = ()
    #: For a sequence of calls, as in a trajectory: each call's error divided by its limit.
    curve: tuple[float | None, ...] = ()
    #: The call with the worst error, and the output.
    worst_call: int | None = None
    worst_output: str | None = None
    fallbacks: tuple[str, ...] = ()
    #: SHA-256 of the inputs: equal id and hash mean that two backends got equal inputs.
    input_sha256: str = ""
    #: Seconds to prepare the program (0 where it was there already) and to run the case.
    prepare_s: float = 0.0
    run_s: float = 0.0
    #: PNG files beside the results, relative to them: ``reference``, ``backend``, ``difference``.
    pictures: Mapping[str, str] = field(default_factory=dict)
    #: The last lines that the worker wrote, where it crashed or hung.
    log: str = ""
    #: The command that asks this alone, of what a seed draws; where it fails, the simplest that does.
    rerun: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The level that the results grant."""

    #: ``"L2"``, or ``"none"``.
    level: str
    profiles: tuple[str, ...] = ()
    #: The cases that stand between this level and the one asked for, and those of profiles.
    blockers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join((self.level, *self.profiles))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One backend, one model, every case."""

    schema_version: str = SCHEMA_VERSION
    #: ``version``, ``tolerances`` (its version), ``tolerances_sha256``.
    suite: Mapping[str, str]
    #: ``id``, ``utc``, ``level``, ``command``, ``model``, ``reference`` (target and engine of the bundle).
    run: Mapping[str, str]
    #: ``os``, ``cpu``, ``python`` and the versions of the packages that matter.
    host: Mapping[str, Any]
    #: ``target``, ``distribution``, ``version``, ``engine``, ``device``, ``description``; and
    #: ``interprets``: the backend whose programs were computed without its hardware, or nothing.
    backend: Mapping[str, str]
    #: ``"unet/float32/symbolic"`` to the answer of ``supports``: ``level`` and ``reason``.
    capabilities: Mapping[str, Mapping[str, str]]
    claim: Claim
    results: tuple[Result, ...]

    @property
    def interprets(self) -> str:
        """The backend whose programs this run interpreted; empty where its own engine ran."""
        return self.backend.get("interprets", "")

    @property
    def totals(self) -> dict[str, int]:
        """How many results there are of each status."""
        totals = {"selected": len(self.results)}
        totals["executed"] = sum(result.status.executed for result in self.results)
        for result in self.results:
            totals[result.status] = totals.get(result.status, 0) + 1
        return totals

    def to_dict(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        data["totals"] = self.totals
        data["results"] = [_slim(result) for result in data["results"]]
        return data

    def write(self, path: Path) -> None:
        """Write ``results.json``; it is whole or absent."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        write_file(path, text + "\n")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        claim = data["claim"]
        return cls(
            schema_version=data["schema_version"],
            suite=data["suite"],
            run=data["run"],
            host=data["host"],
            backend=data["backend"],
            capabilities=data["capabilities"],
            claim=Claim(
                level=claim["level"],
                profiles=tuple(claim["profiles"]),
                blockers=tuple(claim["blockers"]),
            ),
            results=tuple(_result(result) for result in data["results"]),
        )


_EMPTY: tuple[Any, ...] = ("", (), {})


def _slim(result: dict[str, Any]) -> dict[str, Any]:
    """The result as plain data without empty fields, so that large files stay readable."""
    return {
        name: value for name, value in result.items() if value is not None and value not in _EMPTY
    }


def _result(data: Mapping[str, Any]) -> Result:
    known = {f.name for f in dataclasses.fields(Result)}
    fields = {name: value for name, value in data.items() if name in known}
    for name in ("profiles", "fallbacks", "curve"):
        fields[name] = tuple(fields.get(name, ()))
    metrics: Sequence[Mapping[str, Any]] = fields.get("metrics", ())
    fields["metrics"] = tuple(
        Metric(name=m["name"], value=m["value"], limit=m.get("limit"), bound=m["bound"])
        for m in metrics
    )
    fields["status"] = Status(fields["status"])
    return Result(**fields)


@lru_cache(maxsize=1)
def results_schema() -> dict[str, Any]:
    """The JSON Schema that every results file keeps, also published as ``results.schema.json``."""
    text = Path(__file__).with_name("results.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def read_results(path: Path) -> Run:
    """Read ``results.json``.

    Raises:
        ResultsError: there is no such file, it is truncated, or of a newer or another schema.
    """
    data = read_json(path, error=ResultsError, remedy="Run the suite again.")
    version = data.get("schema_version")
    if (
        not isinstance(version, str)
        or version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]
    ):
        raise ResultsError(
            f"{path} has the schema version {version!r}; this suite reads "
            f"{SCHEMA_VERSION.partition('.')[0]}.x. "
            + ("Update perfuse." if isinstance(version, str) else "It is not a results file.")
        )
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    problem = best_match(Draft202012Validator(results_schema()).iter_errors(data))
    if problem is not None:
        said = problem.message if len(problem.message) < 300 else f"{problem.message[:300]}…"
        raise ResultsError(
            f"{path} was to be read as results; {problem.json_path}: {said}. Run the suite again."
        )
    run = Run.from_dict(data)
    counts = Counter(result.id for result in run.results)
    twice = next((id for id, count in counts.items() if count > 1), None)
    if twice is not None:
        raise ResultsError(
            f"{path} was to be read as results; it holds {twice!r} more than once. "
            "Run the suite again."
        )
    wrong = sorted(dict(data["totals"].items() ^ run.totals.items()))
    if wrong:
        raise ResultsError(
            f"{path} was to be read as results; its cases do not add up to its totals of "
            f"{', '.join(wrong)}: it was changed after the run. Run the suite again."
        )
    return run
