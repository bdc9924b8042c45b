"""One cache for a run of the tests: what one of them exports or records, the others find."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_before: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    """No test reads or writes the user's cache or settings. Workers inherit the environment."""
    if hasattr(config, "workerinput"):
        return
    _before.update({name: os.environ.pop(name) for name in list(os.environ) if _ours(name)})
    folder = Path(tempfile.mkdtemp(prefix="perfuse-tests-"))
    for name in ("cache", "config"):
        (folder / name).mkdir()
        os.environ[f"PERFUSE_{name.upper()}"] = str(folder / name)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Put the environment back, and take away what the run left."""
    if hasattr(config, "workerinput"):
        return
    shutil.rmtree(Path(os.environ["PERFUSE_CACHE"]).parent, ignore_errors=True)
    for name in list(os.environ):
        if _ours(name):
            del os.environ[name]
    os.environ.update(_before)


def _ours(name: str) -> bool:
    return name.startswith("PERFUSE_")
