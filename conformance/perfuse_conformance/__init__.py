"""Measures a backend against the reference, case by case, and reports the results.

A bundle holds what the reference computes (``bundle``, ``record``); a worker process runs the backend
(``worker``, ``runner``); the verdicts are made outside of it (``judge``), by limits that lie in one file
(``tolerances``).
"""

from importlib import import_module
from typing import Any

__all__ = ["SUITE_VERSION", "BackendConformance"]

#: Cases, limits and results of one version compare; a new minor version may add cases.
SUITE_VERSION = "1.1"


def __getattr__(name: str) -> Any:
    # pytest is only needed by authors of backends.
    if name != "BackendConformance":
        raise AttributeError(f"module 'perfuse_conformance' has no attribute {name!r}")
    return import_module("perfuse_conformance.pytest_plugin").BackendConformance
