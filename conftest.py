"""One cache for a run of the tests: what one of them exports or records, the others find.

``PERFUSE_TEST_CACHE`` names a folder that several runs share.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_FOLDER = pytest.StashKey[Path]()
_before: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    """No test reads or writes the user's cache or settings. Workers inherit the environment."""
    if hasattr(config, "workerinput"):
        return
    _before.update({name: os.environ.pop(name) for name in list(os.environ) if _ours(name)})
    config.stash[_FOLDER] = folder = Path(tempfile.mkdtemp(prefix="perfuse-tests-"))
    os.environ["PERFUSE_CACHE"] = _before.get("PERFUSE_TEST_CACHE", str(folder / "cache"))
    os.environ["PERFUSE_CONFIG"] = str(folder / "config")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The examples of the README first: nothing takes longer, and they run in one piece."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Put the environment back, and take away what the run left."""
    if hasattr(config, "workerinput"):
        return
    shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)
    for name in list(os.environ):
        if _ours(name):
            del os.environ[name]
    os.environ.update(_before)


def _ours(name: str) -> bool:
    return name.startswith("PERFUSE_")
