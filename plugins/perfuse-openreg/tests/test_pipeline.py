"""Whole pipelines on the device: the bundled model, from the checkpoint and from an export."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from perfuse import ArtifactStore, DiffusionPipeline
from perfuse.errors import DeviceNotFoundError, ExecutionError, ExportError, InputError
from perfuse.progress import Progress, reporting

from perfuse_openreg.driver import accelerator
from perfuse_openreg.hardware import HARDWARE

GIVEN: dict[str, Any] = {
    "prompt": "a red circle",
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "seed": 0,
    "output_type": "np",
}


def used() -> list[int]:
    return [accelerator(one, one.memory).memory.used for one in HARDWARE]


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")
    images: np.ndarray = pipe(**GIVEN).images
    return images


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[DiffusionPipeline]:
    store = ArtifactStore(tmp_path)  # what other tests exported would not be exported again
    pipe = DiffusionPipeline.from_pretrained(backend="openreg", store=store)
    yield pipe
    pipe.close()
    assert used() == [0, 0]


def test_the_same_picture(pipe: DiffusionPipeline, reference: np.ndarray) -> None:
    heard: list[Progress] = []
    with reporting(heard.append):
        images = pipe(**GIVEN).images
    said = [progress.message for progress in heard]
    assert np.abs(images - reference).max() < 1e-4
    assert "Preparing unet for batch 2, latent_height 16, latent_width 16, sequence 32" in said
    assert "Exporting unet to openreg (float32)" in said
    report = pipe.program("unet").report()
    assert report.device == "openreg:0"
    assert report.details["sizes"] == [
        {"batch": 2, "latent_height": 16, "latent_width": 16, "sequence": 32}
    ]
    assert sum(used()) > 0


@pytest.mark.exhaustive
def test_the_second_time_nothing_is_compiled(pipe: DiffusionPipeline) -> None:
    pipe(**GIVEN)
    heard: list[Progress] = []
    with reporting(heard.append):
        again = DiffusionPipeline.from_pretrained(backend="openreg", store=pipe.store)
        again(**GIVEN)
        again.close()
    stages = {progress.stage for progress in heard}
    assert "prepare" in stages
    assert "export" not in stages


@pytest.mark.exhaustive
def test_another_size_and_no_guidance(pipe: DiffusionPipeline) -> None:
    given = {**GIVEN, "height": 32, "width": 64, "guidance_scale": 1.0, "num_inference_steps": 2}
    wanted = DiffusionPipeline.from_pretrained(backend="torch:cpu")(**given).images
    found = pipe(**given).images
    assert found.shape == (1, 32, 64, 3)
    assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.exhaustive
def test_the_second_device_in_half_precision(reference: np.ndarray) -> None:
    pipe = DiffusionPipeline.from_pretrained(backend="openreg:1", precision="bfloat16")
    images = pipe(**GIVEN).images
    assert 1e-4 < np.abs(images - reference).mean() < 0.1
    report = pipe.program("unet").report()
    assert (report.device, report.precision) == ("openreg:1", "bfloat16")
    assert report.details["operators"]["bfloat16"] > report.details["operators"]["float32"]
    pipe.close()
    assert used() == [0, 0]


def test_one_component_on_the_device(reference: np.ndarray) -> None:
    pipe = DiffusionPipeline.from_pretrained(backend="vae_decoder=openreg:1,torch:cpu")
    assert np.abs(pipe(**GIVEN).images - reference).max() < 1e-4
    pipe.close()


def test_an_export_runs(folder: Path, reference: np.ndarray) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert str(pipe.placement) == "openreg"
    assert np.abs(pipe(**GIVEN).images - reference).max() < 1e-4
    # Another batch than it was made for runs in parts.
    several = pipe(**{**GIVEN, "prompt": ["a red circle"] * 3}).images
    assert several.shape == (3, 64, 64, 3)
    with pytest.raises(InputError, match="unet was exported for batch 2.*got latent_height 8"):
        pipe(**{**GIVEN, "height": 32})
    pipe.close()


def test_an_export_needs_its_size(tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")
    with pytest.raises(ExportError, match="for any batch, sequence; it takes one size"):
        pipe.export(tmp_path / "any", to="openreg")
    assert not (tmp_path / "any").exists()


def test_what_does_not_fit() -> None:
    pipe = DiffusionPipeline.from_pretrained(backend="openreg", options={"memory": "9MB"})
    with pytest.raises(ExecutionError, match=r"unet was to be put on openreg:0: 8\.\d MB of"):
        pipe(**GIVEN)
    pipe.close()
    assert accelerator(HARDWARE[0], 9_000_000).memory.used == 0


def test_a_device_that_there_is_not() -> None:
    pipe = DiffusionPipeline.from_pretrained(backend="openreg:7")
    with pytest.raises(DeviceNotFoundError, match="'7' was asked for; openreg has 0, 1"):
        pipe(**GIVEN)


def run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "perfuse.cli", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)  # one object, and nothing else
    return data


def test_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSE_PLUGINS", "openreg")
    rows = {row["backend"]: row for row in run("backends", "--json")["backends"]}
    targets = [device["target"] for device in rows["openreg"]["devices"]]
    assert targets == ["openreg:0", "openreg:1"]


def test_the_command_line(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    given = ["a red circle", "--backend", "openreg", "--steps", "2", "--seed", "0", "--json"]
    result = run("generate", *given, "--output", str(picture))
    assert picture.stat().st_size > 0
    assert result["components"]["unet"]["device"] == "openreg:0"


def test_listing_it_starts_nothing() -> None:
    code = (
        "import sys; from perfuse.plugins import host; "
        "print(len(host().backend('openreg').devices()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"], done.stderr
