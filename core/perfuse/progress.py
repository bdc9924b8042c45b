"""What long work says of itself while it goes on: to a progress bar, to a log, or to nobody.

>>> heard: list[Progress] = []
>>> with reporting(heard.append), working("export", "Exporting unet", subject="unet", total=3):
...     say("Capturing unet")
>>> [(progress.message, progress.seconds is not None) for progress in heard]
[('Exporting unet', False), ('Capturing unet', False), ('Exporting unet', True)]
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

__all__ = ["Progress", "reporting", "say", "working"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Something that is being done now, or has just been done."""

    #: For a person: "Exporting unet to onnx (float32)".
    message: str
    #: What kind of work: "export", "prepare"; empty for a remark that begins and ends nothing.
    stage: str = ""
    #: What it is done to, as a rule a component: "unet".
    subject: str = ""
    #: How many like it are done, of ``total``, which is ``None`` where nobody can know.
    done: int = 0
    total: int | None = None
    #: How long it took; ``None`` while it goes on.
    seconds: float | None = None


_report: ContextVar[Callable[[Progress], None]] = ContextVar(
    "report", default=lambda progress: None
)


@contextmanager
def reporting(report: Callable[[Progress], None]) -> Iterator[None]:
    """Have everything that is done in the block reported as it is done."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def say(message: str) -> None:
    """Remark on what is being done, to whoever listens (``reporting``)."""
    _report.get()(Progress(message=message))


@contextmanager
def working(
    stage: str, message: str, *, subject: str = "", done: int = 0, total: int | None = None
) -> Iterator[None]:
    """Report that the work of the block begins; and, if nothing was raised, that it is done.

    Args:
        stage: The kind of work. Work of another kind inside counts as that, not as this.
        message: What is being done, for a person.
        subject: What it is done to.
        done: How many subjects are done before this one.
        total: How many there are; ``None`` where nobody knows.
    """
    progress = Progress(message=message, stage=stage, subject=subject, done=done, total=total)
    _report.get()(progress)
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    _report.get()(replace(progress, done=done + 1, seconds=seconds))
