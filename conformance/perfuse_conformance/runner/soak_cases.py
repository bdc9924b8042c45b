"""Judges what needs many calls, many programs, two at once, or another process to be seen."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from perfuse_conformance.cases.catalogue import (
    MANY_PROGRAMS,
    ORDER,
    SOAK,
    TWO_PROGRAMS,
    Case,
)
from perfuse_conformance.judge.results import Result, Status
from perfuse_conformance.judge.verdicts import fail, raised
from perfuse_conformance.runner.answers import calls_in, mannered
from perfuse_conformance.runner.process import Answer, WorkerProcess
from perfuse_conformance.runner.soak import miss

__all__ = ["judge_soak"]

#: How far an answer may be from another one to the same inputs, over its spread: engines add up in an
#: order that threads and layouts change.
_APART = 1e-3
#: Bytes that a process may grow by over hundreds of calls, and by each program that was closed.
_GROWN, _LEFT = 16_000_000, 400_000


class Soaking(Protocol):
    """What these cases need of a session."""

    thorough: bool

    @property
    def drawn_with(self) -> int: ...
    @property
    def out(self) -> Path: ...

    @property
    def other(self) -> WorkerProcess: ...

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        prepares: bool = False,
        worker: WorkerProcess | None = None,
    ) -> Answer: ...
    def modes(self, precision: str) -> dict[str, bool]: ...


def judge_soak(case: Case, result: Result, session: Soaking) -> Result:
    """The verdict on one of these cases."""
    judge = {
        SOAK: _many_calls,
        MANY_PROGRAMS: _many_programs,
        TWO_PROGRAMS: _two_programs,
        ORDER: _order,
    }[str(case.subject)]
    return judge(case, result, session)


def _what(case: Case) -> dict[str, Any]:
    return {
        "component": case.component,
        "precision": case.precision,
        "static": case.mode == "static",
    }


def _many_calls(case: Case, result: Result, session: Soaking) -> Result:
    """Each answer is the first one to the same inputs, however they lie, and another process's."""
    asked = {**_what(case), "seed": session.drawn_with}
    other = session.other
    answer = session.ask({"do": "soak", **asked, "thorough": session.thorough}, prepares=True)
    if answer.value is None:
        return mannered(raised(result, answer.error or {}), answer)
    found = answer.value
    if not found["miss"] <= _APART:
        return fail(
            result,
            Status.FAIL_MISMATCH,
            "changes-with-calls",
            f"call {found['at']} of {found['calls']}, with {found['layout']} inputs, misses the "
            f"first answer to the same inputs by {found['miss']:.2g} of its spread",
        )
    if found["grown"] is not None and found["grown"] > _GROWN:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "memory-grows",
            f"{found['calls']} calls left {found['grown'] / 1e6:.0f} MB more in memory than the "
            "first fifth of them",
        )
    kept = calls_in(session.out)
    request = {"do": "again", **asked, "numbers": found["kept"]}
    again = session.ask(request, prepares=True, worker=other)
    if again.value is None:
        return mannered(raised(result, again.error or {}), again)
    far = max(map(miss, kept, calls_in(other.out)), default=0.0)
    if found["calls"] < found["wanted"]:
        told = f"time was up after {found['calls']} of {found['wanted']} calls"
        result = replace(result, reason=told)
    return mannered(_same_elsewhere(result, far), answer)


def _same_elsewhere(result: Result, far: float) -> Result:
    if far <= _APART:
        return replace(result, status=Status.PASS)
    return fail(
        result,
        Status.FAIL_MISMATCH,
        "depends-on-what-was-before",
        f"another process, asked in another order, gives answers to the same inputs that are {far:.2g} "
        "of their spread away",
    )


def _many_programs(case: Case, result: Result, session: Soaking) -> Result:
    """A program that was closed leaves nothing behind."""
    request = {"do": "many_programs", **_what(case), "thorough": session.thorough}
    answer = session.ask(request, prepares=True)
    if answer.value is None:
        return mannered(raised(result, answer.error or {}), answer)
    left, programs = answer.value["left"], answer.value["programs"]
    if left is not None and left > _LEFT:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "programs-stay",
            f"each of {programs} programs, prepared, called and closed one after the other, left "
            f"{left / 1e6:.1f} MB behind",
        )
    return mannered(replace(result, status=Status.PASS), answer)


def _two_programs(case: Case, result: Result, session: Soaking) -> Result:
    """Two programs of a component do not know of each other."""
    request = {"do": "two_programs", **_what(case), "seed": session.drawn_with}
    answer = session.ask(request, prepares=True)
    if answer.value is None:
        return mannered(raised(result, answer.error or {}), answer)
    for way, far in answer.value["misses"].items():
        if not far <= _APART:
            return fail(
                result,
                Status.FAIL_MISMATCH,
                "programs-disturb-each-other",
                f"two programs that are called {way} miss what one gives alone by {far:.2g} of its "
                "spread",
            )
    return mannered(replace(result, status=Status.PASS), answer)


def _order(case: Case, result: Result, session: Soaking) -> Result:
    """Components prepared in one order, and in another process in the other, answer the same."""
    modes = session.modes(str(case.precision))
    order = np.random.default_rng(session.drawn_with).permutation(list(modes)).tolist()
    asked = {"do": "order", "precision": case.precision, "modes": modes}
    other = session.other
    here = session.ask({**asked, "order": order}, prepares=True)
    there = session.ask({**asked, "order": order[::-1]}, prepares=True, worker=other)
    for answer in (here, there):
        if answer.value is None:
            return mannered(raised(result, answer.error or {}), answer)
    far = max(map(miss, calls_in(session.out), calls_in(other.out)))
    return mannered(_same_elsewhere(result, far), answer)
