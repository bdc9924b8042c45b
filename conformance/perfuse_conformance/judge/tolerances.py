"""The limits that cases are judged by: read from one file of the suite, which a plugin cannot name.

``tolerances.toml`` beside this module holds every limit with what was observed and why it is so;
``python -m perfuse_conformance.ratchet`` checks that none grows unseen.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from perfuse.errors import InputError, PerfuseError
from perfuse.sources import read_toml
from perfuse_conformance.judge.results import Metric

__all__ = ["TOLERANCES", "Limit", "Tolerances", "TolerancesError", "error_of"]

#: The one file.
TOLERANCES = Path(__file__).with_name("tolerances.toml")

#: Metrics by direction: lower is better, or higher is better.
_BOUNDS = {
    "rmse_ratio": "max",
    "flip": "max",
    "lpips": "max",
    "snr_db": "min",
    "psnr_db": "min",
    "ssim": "min",
    "agreement": "min",
}


class TolerancesError(PerfuseError):
    """The file of limits cannot be read: it is damaged, or was changed by hand and is now wrong."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What one metric of one kind of case may be, at one precision."""

    #: ``"component"`` (one call), ``"forced"`` (a trajectory's calls with the reference's inputs),
    #: ``"free"`` (its latents when nothing is corrected), ``"picture"`` (the worst one),
    #: ``"repeat"`` (the same twice), ``"quality"`` (captions that come out right).
    kind: str
    precision: str
    metric: str
    #: ``"max"`` or ``"min"``, as in ``Metric``.
    bound: str
    limit: float
    #: For a ratio: the term added to its denominator, relative to the truth's root mean square.
    floor: float = 0.0
    #: A value nobody need do better than, e.g. the PSNR of rounding to 8 bits. ``None``: there is
    #: none, a smaller error is always a better one.
    resolution: float | None = None
    #: What 95 of 100 right results were at least as good as.
    observed_p95: float
    evidence: str
    rationale: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.precision, self.metric

    @property
    def slack(self) -> float:
        """How often the observed error goes into the limit; an error below the resolution is it."""
        observed = error_of(self.metric, self.observed_p95)
        if self.resolution is not None:
            observed = max(observed, error_of(self.metric, self.resolution))
        limit = error_of(self.metric, self.limit)
        if limit == 0:  # nothing could be tighter
            return 1.0
        return limit / observed if observed > 0 else math.inf

    def measured(self, value: float) -> Metric:
        """A value held against this limit; NaN and infinity become ``None``, which fits none."""
        return Metric(
            name=self.metric,
            value=value if math.isfinite(value) else None,
            limit=self.limit,
            bound=self.bound,
        )


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Every limit of a version of the suite."""

    version: str
    #: The SHA-256 of the file: results with equal values were judged by equal limits.
    sha256: str
    entries: tuple[Limit, ...]

    @classmethod
    def load(cls) -> Self:
        """The suite's own limits. There is no way to give it another file."""
        return cls.read(TOLERANCES)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of limits: for the suite's own tests.

        Raises:
            TolerancesError: it cannot be read, or does not say what it has to.
        """
        data = read_toml(path, error=TolerancesError, remedy="Mend it.")
        problem = next(problems(data), None)
        if problem is not None:
            raise TolerancesError(f"{path} was to be read as limits; {problem}. Mend it.")
        return cls(
            version=data["version"],
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            entries=tuple(_limit(entry) for entry in data["limit"]),
        )

    def limits(self, kind: str, precision: str) -> tuple[Limit, ...]:
        """What a kind of case is held to at a precision: at least one limit.

        Raises:
            InputError: there is none; nothing passes for want of a limit.
        """
        found = tuple(e for e in self.entries if (e.kind, e.precision) == (kind, precision))
        if not found:
            known = sorted({f"{e.kind} at {e.precision}" for e in self.entries})
            raise InputError(
                f"The limits of {kind!r} at {precision!r} were asked for; there are those of "
                f"{', '.join(known)}."
            )
        return found


def error_of(metric: str, value: float) -> float:
    """A metric's value as an error that is 0 for perfect and doubles when things are twice as bad.

    Decibels become the ratio of noise to signal, similarities and shares what they lack of 1.
    """
    if metric.endswith("_db"):
        return math.pow(10.0, -value / 20)
    if metric in ("ssim", "agreement"):
        return max(1 - value, 0.0)
    return value


def problems(data: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the form of a file of limits, a line each: nothing where it is right."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(_schema())
    wrong = False
    for error in sorted(validator.iter_errors(data), key=lambda e: list(map(str, e.path))):
        wrong = True
        yield f"{_place(data, tuple(error.absolute_path))}: {error.message}"
    if wrong:
        return  # what follows relies on the form
    for table in (data["limit"], data["released"]["limits"]):
        seen = set()
        for entry in table:
            name = named(entry)
            if name in seen:
                yield f"{name}: it is there twice"
            seen.add(name)
            if entry["bound"] != _BOUNDS[entry["metric"]]:
                yield f"{name}: the bound of {entry['metric']} is {_BOUNDS[entry['metric']]}"
            numbers = [value for value in entry.values() if isinstance(value, int | float)]
            if not all(math.isfinite(number) for number in numbers):
                yield f"{name}: every number has to be finite"


def named(entry: Mapping[str, Any]) -> str:
    """What an entry is called in messages: ``"component float32 snr_db"``."""
    return " ".join(str(entry.get(key, "?")) for key in ("kind", "precision", "metric"))


def _limit(entry: Mapping[str, Any]) -> Limit:
    return Limit(**{name: value for name, value in entry.items() if name != "loosened"})


def _place(data: Mapping[str, Any], path: tuple[str | int, ...]) -> str:
    """Where in the file something is, in words."""
    if len(path) >= 2 and path[0] == "limit":
        entry = data["limit"][path[1]]
        return named(entry) if isinstance(entry, Mapping) else f"limit {path[1]}"
    if len(path) >= 3 and path[:2] == ("released", "limits"):
        entry = data["released"]["limits"][path[2]]
        return f"released {named(entry) if isinstance(entry, Mapping) else path[2]}"
    return ".".join(map(str, path)) if path else "the file"


@lru_cache(maxsize=1)
def _schema() -> dict[str, Any]:
    text = Path(__file__).with_name("tolerances.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
