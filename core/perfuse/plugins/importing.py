"""Importing what a manifest names, and describing what went wrong."""

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

__all__ = ["quiet", "resolve", "said"]

_printing = threading.RLock()


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
