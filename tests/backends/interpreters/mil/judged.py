"""One case of the suite, judged without a process of its own: which costs seconds each time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse_conformance.judge.results import Result
from perfuse_conformance.runner.process import Answer
from perfuse_conformance.runner.session import Session, open_session
from perfuse_conformance.runner.worker import Worker


class _Here:
    """A worker in this process: what is asked of it is what a process of its own is asked."""

    def __init__(self, session: Session, out: Path) -> None:
        self.out = out
        self._worker = Worker(session.target, session.model, out)

    def ask(self, request: Mapping[str, Any], timeout: float) -> Answer:
        return Answer(value=self._worker.answer(request))

    def close(self) -> None:
        self._worker.release()


def session_of(model: Path, golden: Path, folder: Path) -> Session:
    """A session with an exported folder on the interpreter, at L1."""
    session = open_session("coreml-interpreter", model=str(model), golden=golden, level="L1")
    session._worker = _Here(session, folder / "out.npz")  # type: ignore[assignment]
    return session


def judged(id: str, model: Path, golden: Path, folder: Path) -> Result:
    """The result of one case of an exported folder."""
    session = session_of(model, golden, folder)
    try:
        (case,) = [case for case in session.cases() if case.id == id]
        return session.judge(case)
    finally:
        session.close()
