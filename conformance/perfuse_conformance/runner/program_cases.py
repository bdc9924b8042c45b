"""Judges programs: what they compute, with other weights, once closed, and what was declared impossible."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from perfuse.spec import PipelineSpec
from perfuse_conformance.cases.bundle import Bundle
from perfuse_conformance.cases.catalogue import ADAPTERS, OTHER_WEIGHTS, Case
from perfuse_conformance.judge.results import Result, Status
from perfuse_conformance.judge.tolerances import Tolerances
from perfuse_conformance.judge.verdicts import fail, judge_calls, raised
from perfuse_conformance.runner.answers import calls_in, mannered
from perfuse_conformance.runner.process import Answer
from perfuse_conformance.runner.soak_cases import Soaking, judge_soak

__all__ = ["judge_component", "judge_contract", "judge_refusal"]

#: How far a result may be from what is right, over how far other weights would take it.
_STALE = 0.1
#: How far the last of many results may be from the first with the same weights, over the same.
_DRIFT = 1e-5


class _Session(Soaking, Protocol):
    """What these cases need of a session."""

    tolerances: Tolerances
    engine: str
    lora: Path | None

    @property
    def spec(self) -> PipelineSpec: ...
    @property
    def bundle(self) -> Bundle: ...

    def called(self, case: Case, bundle: Bundle) -> Answer: ...
    def command(self, id: str) -> str: ...


def judge_component(case: Case, result: Result, session: _Session) -> Result:
    """The verdict on the calls of a probe."""
    answer = session.called(case, session.bundle)
    if answer.value is None:
        return mannered(raised(result, answer.error or {}), answer)
    session.engine = session.engine or answer.value["report"]["engine"]
    component = session.spec.components[str(case.component)]
    judged = judge_calls(
        result,
        case,
        answer.value,
        calls_in(session.out),
        session.bundle,
        component.signature,
        session.tolerances,
    )
    return mannered(judged, answer)


def judge_contract(case: Case, result: Result, session: _Session) -> Result:
    """The verdict on what a program must do besides computing rightly."""
    if case.id.startswith("soak/"):
        return replace(judge_soak(case, result, session), rerun=session.command(case.id))
    if case.subject in (OTHER_WEIGHTS, ADAPTERS):
        return _switched(case, result, session)
    return _closed(case, result, session)


def _closed(case: Case, result: Result, session: _Session) -> Result:
    answer = session.ask(
        {
            "do": "closed",
            "component": case.component,
            "precision": case.precision,
            "static": case.mode == "static",
        },
        prepares=True,
    )
    if answer.value is None:
        return mannered(raised(result, answer.error or {}), answer)
    if answer.value["refused"] is None:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "runs-closed",
            "a program that was closed still ran; calling it is an error",
        )
    if answer.value["threads"]:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "leaves-threads",
            f"a closed program left {', '.join(answer.value['threads'])} running, which keeps "
            "the process from ending",
        )
    return mannered(replace(result, status=Status.PASS), answer)


def _switched(case: Case, result: Result, session: _Session) -> Result:
    """With other weights, or a LoRA, it must compute with those, in whatever order they come."""
    what = {
        "component": case.component,
        "precision": case.precision,
        "static": case.mode == "static",
    }
    if case.subject == ADAPTERS:
        lora = str(session.lora) if session.lora is not None else None
        answer = session.ask({"do": "adapters", "lora": lora, **what}, prepares=True)
        told = "with a LoRA, without it, and with half of it, in turns"
    else:
        answer = session.ask({"do": "other_weights", **what}, prepares=True)
        told = "with its weights, with others, and with both again"
    if answer.value is None:
        return mannered(raised(result, answer.error or {}), answer)
    misses: list[float] = answer.value["misses"]
    drift: float = answer.value["drift"]
    if not all(miss <= _STALE for miss in misses):
        return fail(
            result,
            Status.FAIL_MISMATCH,
            "stale-weights",
            f"{told}, it misses what is right by "
            f"{', '.join(f'{miss:.2g}' for miss in misses)} of the distance between the first "
            "two; other weights are used",
        )
    if not drift <= _DRIFT:
        return fail(
            result,
            Status.FAIL_MISMATCH,
            "drifting-weights",
            f"{told}, it answers otherwise in the end than it did at first with the same: by "
            f"{drift:.2g} of the distance between the first two; make each set of weights of "
            "the checkpoint's own",
        )
    return mannered(replace(result, status=Status.PASS), answer)


def judge_refusal(case: Case, result: Result, session: _Session) -> Result:
    """What was declared impossible must be refused with a reason, or be right."""
    if not case.declined:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "no-reason",
            "supports() declines and gives no reason; say why, and what to do",
        )
    answer = session.called(case, session.bundle)
    if answer.error is not None:
        if "UnsupportedError" in answer.error["bases"]:
            declined = replace(result, reason=case.declined)
            return mannered(replace(declined, status=Status.NOT_SUPPORTED), answer)
        return mannered(
            fail(
                result,
                Status.FAIL_UNREFUSED,
                "not-refused",
                f"declared as {case.declined!r}; instead of UnsupportedError, prepare raised "
                f"{answer.error['type']}: {answer.error['message']}",
            ),
            answer,
        )
    assert answer.value is not None
    judged = judge_calls(
        result,
        case,
        answer.value,
        calls_in(session.out),
        session.bundle,
        session.spec.components[str(case.component)].signature,
        session.tolerances,
    )
    if judged.status.failed:
        return fail(
            judged,
            Status.FAIL_UNREFUSED,
            "not-refused",
            f"declared as {case.declined!r}; it ran all the same, and is wrong: {judged.reason}",
        )
    return fail(
        judged,
        Status.UNDER_DECLARED,
        "under-declared",
        f"declared as {case.declined!r}; it works",
    )
