"""Importing what a manifest names, and describing what went wrong."""

import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

__all__ = ["Stopped", "is_stop", "quiet", "resolve", "said"]

_printing = threading.RLock()


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
    except Exception:  # noqa: BLE001 - its __str__ is third-party code, too
        text = ""
    return f"{type(exc).__name__}: {text}".splitlines()[0].removesuffix(": ")
