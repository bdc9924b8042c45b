"""Importing what a manifest names, and saying what went wrong with it."""

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
    """While a plugin's code runs: what it prints is no part of what a command prints."""
    with _printing, redirect_stdout(sys.stderr):  # two threads would restore each other's
        yield


def resolve(reference: str) -> Callable[..., Any]:
    """The object that ``"module:name"`` names."""
    module, _, name = reference.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def said(exc: BaseException) -> str:
    """What an exception of somebody else's says, on one line."""
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - it is somebody else's
        text = ""
    return f"{type(exc).__name__}: {text}".splitlines()[0].removesuffix(": ")
