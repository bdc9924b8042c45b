"""Pipelines with their graphs, saved and opened again: with a LoRA, with a ControlNet, of a video."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse import ArtifactStore
from perfuse.errors import CheckpointError, InputError
from perfuse_conformance.bridged.measure import call_of, pipeline_of
from perfuse_conformance.bridged.recipe import recipes

pytestmark = pytest.mark.export


def made(name: str) -> Any:
    return pipeline_of(next(one for one in recipes() if one.name == name))[1]


def draw(pipe: Any, name: str) -> Any:
    torch.manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    given = {**call_of(name), "num_inference_steps": 2, "output_type": "np"}
    return np.asarray(pipe(**given, generator=torch.Generator().manual_seed(0))[0])


@pytest.fixture
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Called before a pipeline is opened: nothing is captured from then on."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was captured")

    return lambda: monkeypatch.setattr(torch.export, "export", refuse)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["StableDiffusionControlNetPipeline", "WanPipeline"])
def test_a_pipeline_of_several_kinds_of_models(
    name: str, engine: str, tmp_path: Path, uncaptured: Any
) -> None:
    pytest.importorskip(engine)
    pipe = made(name)
    expected = draw(pipe, name)
    perfuse.accelerate(pipe, engine, store=ArtifactStore(tmp_path / "store"))
    drawn = draw(pipe, name)
    assert np.abs(drawn - expected).max() < 1e-3
    pipe.save_perfuse(tmp_path / "saved")
    uncaptured()
    again = perfuse.load_accelerated(tmp_path / "saved", strict=True)
    assert type(again).__name__ == name
    assert np.abs(draw(again, name) - expected).max() < 1e-3
    assert not any(row.torch_calls for row in again.perfuse.report())


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_a_lora_is_part_of_the_weights_or_refused(
    engine: str, tmp_path: Path, uncaptured: Any
) -> None:
    pytest.importorskip("peft")
    pytest.importorskip(engine)
    from tests.bridge.test_lora import adapter

    name = "StableDiffusionPipeline"
    pipe = made(name)
    before = draw(pipe, name)
    pipe.load_lora_weights(adapter(pipe, tmp_path), adapter_name="style")
    pipe.set_adapters(["style"], [0.7])
    expected = draw(pipe, name)
    assert np.abs(expected - before).max() > 1e-2
    perfuse.accelerate(pipe, engine, store=ArtifactStore(tmp_path / "store"))
    with pytest.raises(InputError, match=r"a LoRA is loaded into its unet.*pipe\.fuse_lora"):
        pipe.save_perfuse(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert np.abs(draw(pipe, name) - expected).max() < 1e-3
    pipe.save_perfuse(tmp_path / "saved")
    uncaptured()
    again = perfuse.load_accelerated(tmp_path / "saved", strict=True)
    assert np.abs(draw(again, name) - expected).max() < 1e-3


def test_weights_that_no_file_has(tmp_path: Path) -> None:
    pipe = made("DDPMPipeline")
    perfuse.accelerate(pipe, "onnxruntime", store=ArtifactStore(tmp_path / "store"))
    pipe.save_perfuse(tmp_path / "saved")
    file = tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file)
    with pytest.raises(CheckpointError, match="1 weights of its unet are in no file"):
        perfuse.load_accelerated(tmp_path / "saved")
