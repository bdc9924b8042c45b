"""Judges trials, and looks for the simplest one that still fails."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from perfuse.errors import PerfuseError
from perfuse.spec import PipelineSpec
from perfuse_conformance.cases.bundle import Bundle
from perfuse_conformance.cases.catalogue import Case
from perfuse_conformance.cases.trials import Trial, probe_for
from perfuse_conformance.judge.results import Result, Status
from perfuse_conformance.judge.tolerances import Tolerances
from perfuse_conformance.judge.verdicts import fail, judge_calls, raised
from perfuse_conformance.runner.answers import calls_in, mannered
from perfuse_conformance.runner.process import Answer, Failure

__all__ = ["judge_trial", "simplest"]

#: For how many seconds simpler ones are looked for.
_SECONDS = 30.0
#: What is usual, besides sizes.
_PLAIN: Mapping[str, object] = {
    "layout": "contiguous",
    "guided": False,
    "scale": 1.0,
    "about": 1.0,
}


class Tried(Protocol):
    """What a trial needs of a session."""

    tolerances: Tolerances

    @property
    def spec(self) -> PipelineSpec: ...
    @property
    def out(self) -> Path: ...
    @property
    def can_ask_more(self) -> bool: ...

    def ask(self, request: dict[str, object], *, prepares: bool = False) -> Answer: ...
    def called(self, case: Case, bundle: Bundle) -> Answer: ...
    def right_of(self, case: Case, trial: Trial) -> tuple[Case, Trial, Bundle]: ...
    def command(self, id: str) -> str: ...


def judge_trial(case: Case, result: Result, session: Tried) -> Result:
    """The verdict on a trial. Of one that fails, the simplest that fails as well is told."""
    trial = _supported(case, session)
    if trial is None:
        return fail(result, Status.NOT_SUPPORTED, "", "supports() declines every such size")
    trial, judged = _judged(case, result, session, trial)
    if judged.status.failed and session.can_ask_more and ":" not in case.id:

        def fails(other: Trial) -> Result | None:
            _, found = _judged(case, result, session, other)
            alike = (found.status, found.reason_code) == (judged.status, judged.reason_code)
            return found if alike else None

        trial, judged = simplest(trial, judged, fails, session.spec)
    id = case.id.partition(":")[0]
    return replace(judged, rerun=session.command(f"{id}:{trial}"))


def _supported(case: Case, session: Tried) -> Trial | None:
    """The first of a case's trials that the backend does not decline, where sizes are fixed."""
    if case.mode == "symbolic" or len(case.trials) == 1:
        return case.trials[0]
    component = session.spec.components[str(case.component)]
    sizes = [dict(probe_for(session.spec, component, trial, "").dims) for trial in case.trials]
    asked = {"component": component.name, "precision": case.precision, "sizes": sizes}
    answer = session.ask({"do": "supports_sizes", **asked})
    works = answer.value["works"] if answer.value is not None else [True]
    return next((t for t, yes in zip(case.trials, works, strict=False) if yes), None)


def _judged(case: Case, result: Result, session: Tried, trial: Trial) -> tuple[Trial, Result]:
    """A trial as it was asked, and the verdict on it."""
    case, trial, bundle = session.right_of(case, trial)
    result = replace(result, input_sha256=bundle.index["probes"][case.subject]["sha256"])
    answer = session.called(case, bundle)
    if answer.value is None:
        return trial, mannered(raised(result, answer.error or {}), answer)
    judged = judge_calls(
        result,
        case,
        answer.value,
        calls_in(session.out),
        bundle,
        session.spec.components[str(case.component)].signature,
        session.tolerances,
    )
    return trial, mannered(judged, answer)


def simplest(
    trial: Trial,
    judged: Result,
    fails: Callable[[Trial], Result | None],
    spec: PipelineSpec,
) -> tuple[Trial, Result]:
    """The simplest trial that was found to fail in the same way, and the verdict on it.

    One thing after the other is made as it usually is, then one size after the other as small as it
    can be.

    Args:
        trial: One that fails.
        judged: The verdict on it.
        fails: The verdict on another one; ``None`` where it does not fail so.
        spec: The model.
    """
    begun = time.monotonic()

    def try_(name: str, value: object) -> bool:
        nonlocal trial, judged
        other = replace(trial, **{name: value})  # type: ignore[arg-type]
        if other == trial or time.monotonic() - begun > _SECONDS:
            return False
        try:
            verdict = fails(other)
        except PerfuseError:  # the model does not take it
            return False
        if verdict is not None:
            trial, judged = other, verdict
        return verdict is not None

    try:
        for name, value in _PLAIN.items():
            try_(name, value)
        step = spec.size_multiple
        for name, unit in (("batch", 1), ("height", step), ("width", step), ("text", 1)):
            least, most = unit, getattr(trial, name)
            if try_(name, least):
                continue
            while most - least > unit:
                middle = (least + most) // 2 // unit * unit
                if try_(name, middle):
                    most = middle
                else:
                    least = middle
    except Failure:  # the worker is lost: no more of this
        pass
    return trial, judged
