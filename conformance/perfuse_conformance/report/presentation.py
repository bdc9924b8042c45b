"""Results as text: a symbol, a word and a kind for each status; claims and numbers."""

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from perfuse_conformance.cases.catalogue import PROFILES
from perfuse_conformance.judge.levels import MEANING
from perfuse_conformance.judge.results import Claim, Metric, Result, Run, Status

__all__ = [
    "KINDS",
    "LOOKS",
    "Group",
    "Look",
    "ability_look",
    "again_said",
    "all_results",
    "asked_of",
    "call_said",
    "claim_said",
    "counts_of",
    "group_of",
    "kinds_of",
    "level_said",
    "log_said",
    "look_of_counts",
    "metric_label",
    "metric_said",
    "model_said",
    "models_of",
    "number_said",
    "passed_of",
    "statuses_of",
    "used_of",
    "used_of_limit",
    "used_said",
    "worst_metric",
]


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a status is shown. Symbol and word say as much as the colour does."""

    symbol: str
    word: str
    #: One of :data:`KINDS`, which determines the colour.
    kind: str
    meaning: str


#: Worst first; a group of cases has the status of its worst case.
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "bad": "failed",
        "fallback": "ran elsewhere",
        "expected": "fails as expected",
        "absent": "not run",
        "warn": "close to a limit",
        "good": "passed",
        "refused": "declared unsupported",
    }
)


def _look(symbol: str, word: str, kind: str, meaning: str) -> Look:
    return Look(symbol=symbol, word=word, kind=kind, meaning=meaning)


LOOKS: Mapping[Status, Look] = MappingProxyType(
    {
        Status.PASS: _look("✓", "pass", "good", "within every limit"),
        Status.QUALITY_WARNING: _look(
            "!", "close", "warn", "within every limit, more than half of one used up"
        ),
        Status.PASS_FALLBACK: _look(
            "↪", "fallback", "fallback", "right, but computed elsewhere than asked; does not count"
        ),
        Status.NOT_SUPPORTED: _look(
            "–", "refused", "refused", "declared unsupported, and refused when asked"
        ),
        Status.UNDER_DECLARED: _look(
            "+", "can", "warn", "declared unsupported, and right all the same"
        ),
        Status.FAIL_COMPILE: _look("✗", "prepare", "bad", "could not be prepared"),
        Status.FAIL_RUN: _look("✗", "error", "bad", "raised an error while running"),
        Status.FAIL_MISMATCH: _look("✗", "differs", "bad", "differs from the reference"),
        Status.FAIL_NONFINITE: _look(
            "✗", "NaN", "bad", "holds NaN or infinity, or a picture is one colour"
        ),
        Status.FAIL_CONTRACT: _look(
            "✗", "contract", "bad", "names, shapes, dtypes or manners are not as agreed"
        ),
        Status.FAIL_UNREFUSED: _look("✗", "unrefused", "bad", "neither refused nor right"),
        Status.FAIL_TIMEOUT: _look("✗", "timeout", "bad", "did not end in time"),
        Status.FAIL_CRASH: _look("✗", "crash", "bad", "took its process down"),
        Status.XFAIL: _look(
            "x", "expected", "expected", "fails, as the plugin's expectations say; does not count"
        ),
        Status.XPASS: _look(
            "✗", "passes", "bad", "passes, though the plugin's expectations say that it fails"
        ),
        Status.WAIVED: _look(
            "w", "waived", "expected", "fails as expected, and the suite lets it pass"
        ),
        Status.ENV_MISSING: _look(
            "○", "absent", "absent", "needs something that this machine does not have"
        ),
        Status.NOT_RUN: _look(
            "·", "not run", "absent", "an earlier case took the program down, or the run stopped"
        ),
    }
)


def level_said(level: str) -> str:
    return MEANING.get(level, level)


def claim_said(claim: Claim) -> str:
    """What a claim means, in one sentence: ``Each component computes …; also in float16.``"""
    parts = [level_said(claim.level), *(PROFILES.get(p, p) for p in claim.profiles)]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


@dataclass(frozen=True, kw_only=True, order=True)
class Group:
    """Cases that are shown together: of one level, and one component or one kind."""

    level: str
    name: str

    @property
    def title(self) -> str:
        return _GROUPS.get(self.name, self.name)


_GROUPS = {
    "host": "manners",
    "forced": "single steps",
    "draw": "pictures",
    "repeat": "the same again",
    "quality": "quality",
}


def group_of(result: Result) -> Group:
    """Group the cases of a component; group those of whole pipelines by kind."""
    kind = result.id.partition("/")[0]
    own = (
        result.component
        if kind in ("component", "refusal", "contract", "weights", "soak", "trial")
        else None
    )
    return Group(level=result.level, name=own if own is not None else kind)


def look_of_counts(counts: Mapping[Status, int]) -> Look:
    """The look of the worst among several."""
    kinds = list(KINDS)
    worst = min(
        (status for status in counts if counts[status]),
        key=lambda status: kinds.index(LOOKS[status].kind),
    )
    return LOOKS[worst]


def counts_of(results: Iterable[Result]) -> Counter[Status]:
    return Counter(result.status for result in results)


def asked_of(counts: Mapping[Status, int]) -> int:
    """All but those that the backend declares that it cannot."""
    return sum(n for status, n in counts.items() if status is not Status.NOT_SUPPORTED)


def passed_of(counts: Mapping[Status, int]) -> int:
    """Those of them that a level can be granted with."""
    return asked_of({status: n for status, n in counts.items() if status.counts})


def kinds_of(results: Iterable[Result]) -> dict[str, int]:
    """How many there are of each kind, passed first and then from bad to harmless."""
    counts = Counter(LOOKS[result.status].kind for result in results)
    return {kind: counts[kind] for kind in ("good", "warn", *KINDS) if counts[kind]}


def all_results(runs: Sequence[Run]) -> list[Result]:
    return [result for run in runs for result in run.results]


def statuses_of(runs: Sequence[Run]) -> list[Status]:
    """Those that occur, in the order in which they are declared."""
    found = {result.status for result in all_results(runs)}
    return [status for status in Status if status in found]


_ABILITIES = {
    "full": ("✓", "good"),
    "conditional": ("✓", "warn"),
    "not implemented": ("–", "refused"),
    "unsupported": ("–", "refused"),
    "unknown": ("?", "absent"),
}


def ability_look(level: str) -> tuple[str, str]:
    """Symbol and kind for an answer of ``supports``."""
    return _ABILITIES.get(level, ("?", "absent"))


# Numbers

_LABELS = {
    "rmse_ratio": "RMSE over the reference's own",
    "snr_db": "signal to noise",
    "psnr_db": "PSNR",
    "ssim": "SSIM",
    "flip": "FLIP",
    "lpips": "LPIPS",
    "repeat_rmse_ratio": "RMSE of repeats",
    "repeat_rmse": "RMSE of repeats",
    "agreement": "agreement",
    "right_lost": "captions lost",
}


def metric_label(name: str) -> str:
    return _LABELS.get(name, name.removesuffix("_db").replace("_", " "))


def number_said(value: float) -> str:
    """Three significant digits, as short as they can be written."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "not a number"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(2 - math.floor(math.log10(abs(value))), 0)
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def metric_said(metric: Metric) -> str:
    """``41.3 dB (at least 40)``."""
    unit = "\N{NO-BREAK SPACE}dB" if metric.name.endswith("_db") else ""
    value = "not a number" if metric.value is None else f"{number_said(metric.value)}{unit}"
    if metric.limit is None:
        return value
    bound = "at most" if metric.bound == "max" else "at least"
    return f"{value} ({bound} {number_said(metric.limit)}{unit})"


def _used(metric: Metric) -> float:
    used = metric.used
    return math.inf if used is None else used


def worst_metric(result: Result) -> Metric | None:
    """The judged number that used most of its limit; ``None`` where nothing was judged."""
    judged = [metric for metric in result.metrics if metric.limit is not None]
    return max(judged, key=_used) if judged else None


def used_of(results: Iterable[Result]) -> float | None:
    """The most that any of them used of a limit: 1 is all; infinite where it is not a number."""
    worst = [metric for result in results if (metric := worst_metric(result)) is not None]
    return max((_used(metric) for metric in worst), default=None)


def used_said(used: float) -> str:
    """``34 %``, or ``12×``: of the limit."""
    if math.isinf(used):
        return "∞"
    if used <= 1:
        percent = str(math.ceil(used * 100)) if used == 0 or used >= 0.01 else "<1"
        return f"{percent}\N{NARROW NO-BREAK SPACE}%"
    return f"{number_said(used) if used < 100 else number_said(float(f'{used:.2g}'))}×"


def used_of_limit(used: float) -> str:
    """``34 % of the limit``, or ``12× the limit``."""
    return f"{used_said(used)} {'of ' if used <= 1 else ''}the limit"


def call_said(result: Result) -> str:
    """``step 8 of 10`` of a trajectory, ``call 2 of 3`` of a component; empty where there is none."""
    if result.worst_call is None:
        return ""
    word = "call" if result.level == "L1" else "step"
    of = f" of {len(result.curve)}" if result.curve else ""
    return f"{word} {result.worst_call + 1}{of}"


def log_said(log: str, lines: int = 15) -> str:
    """Of a crash the first lines, which say where it was; of anything else the last."""
    found = log.strip().splitlines()
    crashed = bool(found) and found[0].startswith("Fatal Python error")
    return "\n".join(found[:lines] if crashed else found[-lines:])


def again_said(run: Run, result: Result) -> str:
    """The command that runs a case again, with the same options as the run."""
    if result.rerun:
        return result.rerun
    try:
        words = shlex.split(run.run["command"])
    except ValueError:  # whoever wrote the results wrote no command line
        words = []
    kept = [
        word
        for option, value in pairwise(words)
        if option in ("--option", "--golden", "--seed", "--timeout")
        for word in (option, value)
    ]
    model = [] if run.run["model"] == "shapes" else ["--model", run.run["model"]]
    backend = ["--backend", run.backend["target"], "--level", result.level]
    return shlex.join(["perfuse", "conformance", *backend, *model, *kept, "--case", result.id])


def model_said(model: str) -> str:
    """A model's name: of a folder, its last part."""
    folder = model.startswith(("/", ".", "~")) or "\\" in model
    return model.replace("\\", "/").rstrip("/").rpartition("/")[2] if folder else model


def models_of(runs: Sequence[Run]) -> list[str]:
    """The models, in the order in which they come."""
    return list(dict.fromkeys(run.run["model"] for run in runs))
