"""Importing ``openvino`` without its telemetry, and shortening its error messages."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["import_openvino", "said"]


def import_openvino() -> Any:
    """Import ``openvino`` with its telemetry switched off.

    Importing OpenVINO reports the import, and every conversion, to Google Analytics unless the user
    has opted out. Without its telemetry package it uses a stub of its own, and starts sooner.
    """
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        with _hidden("openvino_telemetry"):
            import openvino
    import openvino

    return openvino


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Let an import of the module fail as if it were not installed."""
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def said(exc: Exception) -> str:
    """OpenVINO's error message on one line, without the locations in its sources."""
    lines = [line.strip() for line in str(exc).splitlines()]
    own = [line for line in lines if line and not line.startswith("Exception from")]
    return " ".join(own[:2]).rstrip(".") or repr(exc)
