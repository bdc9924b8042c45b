"""Judges pictures: drawn once, drawn again, and how many show what their captions say."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from perfuse.spec import PipelineSpec
from perfuse_conformance.cases.bundle import Bundle
from perfuse_conformance.cases.catalogue import Case
from perfuse_conformance.cases.probes import Arrays
from perfuse_conformance.judge.results import Result, Status
from perfuse_conformance.judge.tolerances import Tolerances
from perfuse_conformance.judge.verdicts import fail, judge_draw, judge_same, raised
from perfuse_conformance.reference.quality import agreement, has_captions
from perfuse_conformance.runner.answers import calls_in, mannered
from perfuse_conformance.runner.process import Answer

__all__ = ["Drawn", "judge_drawing", "judge_quality", "judge_repeat"]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The pictures of a case, for a report: arrays [B, H, W, C] in [0, 1]."""

    case: str
    reference: Any
    backend: Any


class _Session(Protocol):
    """What these cases need of a session."""

    tolerances: Tolerances
    model: str | None
    drawn: list[Drawn]
    #: What was drawn first of each subject, by precision.
    first: dict[tuple[str | None, str | None], Arrays]

    @property
    def spec(self) -> PipelineSpec: ...
    @property
    def bundle(self) -> Bundle: ...
    @property
    def out(self) -> Path: ...

    def ask(
        self, request: Mapping[str, Any], *, prepares: bool = False, bundle: Bundle | None = None
    ) -> Answer: ...
    def right_picture(self, case: Case) -> tuple[Bundle, str]: ...
    def change_process(self) -> None: ...


def judge_drawing(case: Case, result: Result, session: _Session) -> Result:
    """The verdict on a picture, held against the reference's."""
    bundle, again = session.right_picture(case)
    result = replace(result, rerun=again)
    answer, drawn = _drawn(case, bundle, session)
    if answer.value is None or drawn is None:
        return mannered(raised(result, answer.error or {}), answer)
    session.first.setdefault((case.subject, case.precision), drawn)
    session.drawn.append(
        Drawn(
            case=case.id,
            reference=bundle.drawn(str(case.subject))["images"],
            backend=drawn["images"],
        )
    )
    judged = judge_draw(result, case, answer.value, drawn, bundle, session.tolerances)
    return mannered(judged, answer)


def judge_repeat(case: Case, result: Result, session: _Session) -> Result:
    """The verdict on a picture that is drawn again, in this process or in another."""
    what = case.subject, case.precision
    if what not in session.first:
        answer, drawn = _drawn(case, session.bundle, session)
        if drawn is None:
            return mannered(raised(result, answer.error or {}), answer)
        session.first[what] = drawn
    if case.mode == "new-process":
        session.change_process()
    answer, drawn = _drawn(case, session.bundle, session)
    if answer.value is None or drawn is None:
        return mannered(raised(result, answer.error or {}), answer)
    judged = judge_same(result, session.first[what], drawn, session.tolerances)
    fresh = answer.value["exported"]
    if fresh and not judged.status.failed:
        return fail(
            judged,
            Status.FAIL_CONTRACT,
            "exported-again",
            f"the second run did not find what the first had exported: {', '.join(fresh)}",
        )
    return mannered(judged, answer)


def _drawn(case: Case, bundle: Bundle, session: _Session) -> tuple[Answer, Arrays | None]:
    request = {"do": "draw", "draw": case.subject, "precision": case.precision}
    answer = session.ask(request, prepares=True, bundle=bundle)
    if answer.value is None:
        return answer, None
    return answer, calls_in(session.out)[0]


def judge_quality(case: Case, result: Result, session: _Session) -> Result:
    """The verdict on pictures of captions, by how many are right beside the reference's."""
    if not has_captions(session.spec, session.model):
        return fail(
            result,
            Status.ENV_MISSING,
            "no-checker",
            "no measure of quality for this model is at hand; the bundled ones have one",
        )
    right = session.bundle.index.get("quality")
    if right is None:
        return fail(
            result,
            Status.ENV_MISSING,
            "no-verdicts",
            "the golden bundle has no verdicts; record it with --level L3",
        )
    answer = session.ask({"do": "quality", "precision": case.precision}, prepares=True)
    if answer.value is None:
        return mannered(raised(result, answer.error or {}), answer)
    verdicts = answer.value["verdicts"]
    limits = session.tolerances.limits("quality", str(case.precision))
    metrics = tuple(limit.measured(agreement(verdicts, right)) for limit in limits)
    told = f"{sum(verdicts)} of {len(verdicts)} captions right; the reference has {sum(right)}"
    fits = all(metric.fits for metric in metrics)
    judged = replace(
        result,
        metrics=metrics,
        reason=told,
        status=Status.PASS if fits else Status.FAIL_MISMATCH,
        reason_code="" if fits else "mismatch",
    )
    return mannered(judged, answer)
