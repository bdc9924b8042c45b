"""The suite finds every mutant out, by the case and at the level that the catalogue names."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from perfuse_mutants.catalogue import CATALOGUE, Caught, Entry

from perfuse.backend import Target
from perfuse_conformance.cases.trials import Trial
from perfuse_conformance.judge.results import Result, Status, read_results
from perfuse_conformance.report.html import write_report
from perfuse_conformance.report.junit import write_junit
from perfuse_conformance.report.single import judge_single
from perfuse_conformance.runner import session as runner
from perfuse_conformance.runner import soak
from perfuse_conformance.runner.process import Answer
from perfuse_conformance.runner.worker import Worker

CAUGHT = {entry.name: entry.caught for entry in CATALOGUE if entry.caught is not None}


class InThisProcess:
    """A worker without its process: the numbers are the same, and torch is imported once for all."""

    def __init__(
        self, target: Target, model: str | None, folder: Path, transforms: Sequence[str] = ()
    ) -> None:
        self.out = folder / "out.npz"
        self._worker = Worker(target, model, self.out, transforms)

    def start(self) -> None:
        pass

    def ask(self, request: Mapping[str, Any], timeout: float) -> Answer:
        return Answer(value=self._worker.answer(request))

    def close(self) -> None:
        self._worker.release()


def judged(name: str, caught: Caught) -> Result:
    """What the suite says of one case of a backend."""
    session = runner.open_session(name, level=caught.level, model=caught.model)
    try:
        cases = {case.id: case for case in session.cases()}
        if caught.status == "FAIL_TIMEOUT":  # its worker is up; the rest takes a second, or forever
            session.timeout = session.prepare_timeout = 5.0
        return session.judge(cases[caught.case])
    finally:
        session.close()


def check(name: str, caught: Caught) -> None:
    result = judged(name, caught)
    assert (str(result.status), result.level) == (caught.status, caught.level), result.reason
    assert result.reason


def _seldom(entry: Entry, number: int) -> bool:
    return entry.name != "mutant-closes-nothing" if drawn(entry.caught) else number % 3 > 0


def drawn(caught: Caught | None) -> bool:
    """Whether a case draws what it asks, or asks many times."""
    return caught is not None and caught.case.startswith(("trial/", "soak/"))


def entries(prefix: str) -> list[Any]:
    """Every mutant whose name begins so; two of three are exhaustive, and all but one that only what
    is drawn finds."""
    found = [one for one in CATALOGUE if one.name.startswith(prefix) and one.caught is not None]
    return [
        pytest.param(
            entry.name,
            entry.caught,
            id=entry.name,
            marks=[pytest.mark.exhaustive] if _seldom(entry, i) else [],
        )
        for i, entry in enumerate(found)
    ]


@pytest.mark.parametrize(("name", "caught"), entries("mutant-"))
def test_wrong_numbers_are_found_out(
    monkeypatch: pytest.MonkeyPatch, name: str, caught: Caught
) -> None:
    monkeypatch.setattr(runner, "WorkerProcess", InThisProcess)
    monkeypatch.setattr(soak, "_SECONDS", (math.inf, math.inf))  # all calls, on a busy machine too
    check(name, caught)


@pytest.mark.parametrize(("name", "caught"), entries("rude-"))
def test_ill_manners_are_found_out_and_outlived(name: str, caught: Caught) -> None:
    check(name, caught)


def test_a_process_of_its_own_finds_the_same() -> None:
    check("mutant-scale", CAUGHT["mutant-scale"])


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_nothing_is_found_in_the_control(monkeypatch: pytest.MonkeyPatch, many: bool) -> None:
    """The same wrapping without a fault, in every case of numbers that finds something in another."""
    monkeypatch.setattr(runner, "WorkerProcess", InThisProcess)
    session = runner.open_session("mutant-none", level="L2")
    try:
        wanted = {caught.case for caught in CAUGHT.values() if drawn(caught) == many}
        cases = [case for case in session.cases() if case.id in wanted and case.kind != "host"]
        results = [session.judge(case) for case in cases]
    finally:
        session.close()
    assert len(results) > (15 if many else 20)
    assert {result.status for result in results} <= {Status.PASS, Status.QUALITY_WARNING}


def test_the_simplest_trial_that_fails_is_told_as_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "WorkerProcess", InThisProcess)
    caught = CAUGHT["mutant-zero-spread"]
    words = judged("mutant-zero-spread", caught).rerun.split()
    id, _, trial = words[-1].partition(":")
    assert (words[:4], words[-2], id) == (
        ["perfuse", "conformance", "--backend", "mutant-zero-spread"],
        "--case",
        caught.case,
    )
    simple = Trial.parse(trial)
    assert (simple.batch, simple.height, simple.text, simple.scale) == (1, 4, 1, 0.0)
    (again,) = judge_single("mutant-zero-spread", [words[-1]], level="L2")
    assert (again.status, again.rerun.split()[-1]) == (Status.FAIL_NONFINITE, words[-1])


@pytest.mark.parametrize("name", ["rude-unprintable-exception", "rude-print-call"])
def test_what_a_mutant_says_can_be_reported(name: str, tmp_path: Path) -> None:
    """Files can be written and read, and hold no markup of the mutant's."""
    caught = CAUGHT[name]
    session = runner.open_session(name, level=caught.level)
    try:
        results = [session.judge(c) for c in session.cases() if c.id == caught.case]
        run = runner.run_of(session, results, "")
    finally:
        session.close()
    run.write(tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == run
    write_junit([run], tmp_path / "junit.xml")
    ElementTree.parse(tmp_path / "junit.xml")
    page = write_report([run], tmp_path, [tmp_path]).read_text(encoding="utf-8")
    assert caught.case in page
    assert "<script>alert" not in page
