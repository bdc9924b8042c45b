"""What the tests share: a cache of their own, and programs of the bundled model."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from perfuse.backend import Program, Target
from perfuse.plugins import host
from perfuse.sources import ArtifactStore, open_model

Prepare = Callable[..., Program]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's cache or settings; perfuse's own run of tests has a cache."""
    if "mutant-none" not in host().backends():
        pytest.skip("perfuse-mutants is not installed: pip install --no-deps -e .")
    if "PERFUSE_TEST_CACHE" in os.environ:
        yield Path(os.environ["PERFUSE_CACHE"])
        return
    names = [name for name in os.environ if name.startswith("PERFUSE_")]
    before = {name: os.environ.pop(name) for name in names}
    cache = tmp_path_factory.mktemp("perfuse-cache")
    os.environ["PERFUSE_CACHE"] = str(cache)
    yield cache
    del os.environ["PERFUSE_CACHE"]
    os.environ.update(before)


@pytest.fixture(scope="session")
def prepare(own_cache: Path) -> Prepare:
    """``prepare("mutant-scale", "unet")``: a program of the bundled model."""
    source = open_model()

    def prepare(
        backend: str,
        component: str,
        precision: str = "float32",
        static: Mapping[str, int] | None = None,
        **target: Any,
    ) -> Program:
        # A checkpoint refuses precisions that do not exist; a backend has to do so itself.
        described = dataclasses.replace(
            source.component(component), precision=precision, static=dict(static or {})
        )
        to = Target(backend=backend, **{"device": "cpu", **target})
        return host().backend(backend).prepare(described, to, ArtifactStore.default())

    return prepare
