"""What the tests share: a cache of their own, and the smallest UNet."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from perfuse import ArtifactStore, Checkpoint, Component, Program, Target
from perfuse.plugins import host

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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DDPM with one block."""
    import perfuse.models
    from perfuse_conformance.checkpoints import ddpm_config, make_checkpoint, randomise

    folder = make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", "ddpm")
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
def unet(checkpoint: Path) -> Component:
    found = Checkpoint.open(checkpoint).component("unet")
    return dataclasses.replace(found, static={"batch": 2, "height": 8, "width": 6})


@pytest.fixture(scope="session")
def prepare(own_cache: Path) -> Prepare:
    """``prepare(component)``: a program; an export is kept for the next."""

    def prepare(component: Component, device: str | None = None, **options: Any) -> Program:
        target = Target(backend="xla", device=device, options=options)
        return host().backend("xla").prepare(component, target, ArtifactStore.default())

    return prepare
