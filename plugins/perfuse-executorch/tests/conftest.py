"""What the tests share: a cache of their own, small checkpoints, and programs made once."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from perfuse.backend import Component, Program, Target
from perfuse.plugins import host
from perfuse.sources import ArtifactStore, Checkpoint

Make = Callable[[str], Path]
Prepare = Callable[..., Program]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's cache or settings; perfuse's own run of tests has a cache."""
    if "PERFUSE_TEST_CACHE" in os.environ:
        yield Path(os.environ["PERFUSE_CACHE"])
        return
    names = [name for name in os.environ if name.startswith("PERFUSE_")]
    before = {name: os.environ.pop(name) for name in names}
    cache = tmp_path_factory.mktemp("perfuse-cache")
    os.environ["PERFUSE_CACHE"] = str(cache)
    os.environ["PERFUSE_CONFIG"] = str(tmp_path_factory.mktemp("perfuse-config"))
    yield cache
    del os.environ["PERFUSE_CACHE"], os.environ["PERFUSE_CONFIG"]
    os.environ.update(before)


def make_tiny(folder: Path) -> Path:
    """DDPM with one block."""
    import perfuse.models
    from perfuse_conformance.checkpoints import ddpm_config, make_checkpoint, randomise

    make_checkpoint(folder, "ddpm")
    config = ddpm_config(
        sample_size=8,
        block_out_channels=[8],
        down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
        norm_num_groups=4,
        add_attention=False,
    )
    randomise(perfuse.models.UNet2DModel(**config)).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``checkpoint("sd1")``: a small random checkpoint, made once; ``tiny`` is the smallest."""
    from perfuse_conformance.checkpoints import make_checkpoint

    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / kind
            made[kind] = make_tiny(folder) if kind == "tiny" else make_checkpoint(folder, kind)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def component(checkpoint: Make) -> Callable[..., Component]:
    """``component("sd1", "unet", static={…})``."""

    def find(
        kind: str, name: str, *, static: Mapping[str, int], precision: str = "float32"
    ) -> Component:
        found = Checkpoint.open(checkpoint(kind)).component(name)
        return dataclasses.replace(found, static=dict(static), precision=precision)

    return find


@pytest.fixture(scope="session")
def prepare(own_cache: Path) -> Prepare:
    """``prepare(component, backend="torch")``: a program; an export is kept for the next."""

    def prepare(
        component: Component, backend: str = "executorch", device: str = "cpu", **options: Any
    ) -> Program:
        target = Target(backend=backend, device=device, options=options)
        return host().backend(backend).prepare(component, target, ArtifactStore.default())

    return prepare
