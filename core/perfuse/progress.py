"""Progress reports of long work, for a progress bar or a log.

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
    """A report that some work has started or ended, or a message in between."""

    #: Readable text: "Exporting unet to onnx (float32)".
    message: str
    #: The kind of work: "export", "prepare"; empty for a message from ``say``.
    stage: str = ""
    #: What is worked on, usually a component: "unet".
    subject: str = ""
    #: How many of ``total`` subjects are done; ``total`` is ``None`` if it is not known.
    done: int = 0
    total: int | None = None
    #: The duration, once the work has ended; ``None`` before.
    seconds: float | None = None


_report: ContextVar[Callable[[Progress], None]] = ContextVar(
    "report", default=lambda progress: None
)


@contextmanager
def reporting(report: Callable[[Progress], None]) -> Iterator[None]:
    """Pass each progress report of the code in the ``with`` block to ``report``."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def say(message: str) -> None:
    """Report a message; without a surrounding ``reporting`` it is dropped."""
    _report.get()(Progress(message=message))


@contextmanager
def working(
    stage: str, message: str, *, subject: str = "", done: int = 0, total: int | None = None
) -> Iterator[None]:
    """Report that the work in the ``with`` block starts and, if nothing was raised, that it ends.

    Args:
        stage: The kind of work. Time in a nested ``working`` of another kind counts for that kind.
        message: Readable text.
        subject: What is worked on.
        done: How many subjects are done before this one.
        total: How many subjects there are; ``None`` if it is not known.
    """
    progress = Progress(message=message, stage=stage, subject=subject, done=done, total=total)
    _report.get()(progress)
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    _report.get()(replace(progress, done=done + 1, seconds=seconds))
