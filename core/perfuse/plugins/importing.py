"""Importing what a manifest names, and describing what went wrong."""

import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from perfuse.errors import PerfuseError

__all__ = ["Stopped", "guarded", "is_stop", "quiet", "resolve", "said"]

_printing = threading.RLock()
#: The most that is kept of what an exception says, in characters.
_LONGEST = 2000


class Stopped(KeyboardInterrupt):
    """Raised by the command line on a signal that ends it, Ctrl-C's among them."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def is_stop(exc: BaseException) -> bool:
    """Whether an exception that came out of third-party code is the user's wish to stop.

    Code may raise ``KeyboardInterrupt`` itself. Where a handler of ours is set for Ctrl-C, the user's
    is a ``Stopped``; elsewhere it cannot be told from such a one, and is taken for the user's.
    """
    ours = signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, signal.SIG_IGN)
    return isinstance(exc, Stopped if ours else KeyboardInterrupt)


@contextmanager
def guarded(fault: Callable[[str], PerfuseError]) -> Iterator[None]:
    """Make an error of whatever third-party code raises that is none of perfuse's.

    Also of what would end the process with status 0, or look like the user's Ctrl-C.

    Args:
        fault: Given what it said, on one line, returns the error.
    """
    try:
        yield
    except PerfuseError:
        raise
    except BaseException as exc:
        if is_stop(exc):
            raise
        raise fault(said(exc)) from exc


@contextmanager
def quiet() -> Iterator[None]:
    """Send what a plugin's code prints to standard error, away from a command's output."""
    with _printing, redirect_stdout(sys.stderr):  # the lock: redirecting is not thread-safe
        yield


def resolve(reference: str) -> Callable[..., Any]:
    """The object that ``"module:name"`` names."""
    module, _, name = reference.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def said(exc: BaseException) -> str:
    """An exception from third-party code as one line: its class and the first line of its text."""
    try:
        text = str(exc)
    except BaseException as second:  # its __str__ is third-party code, too
        if is_stop(second):
            raise
        text = ""
    return f"{type(exc).__name__}: {text}".splitlines()[0].removesuffix(": ")[:_LONGEST]
