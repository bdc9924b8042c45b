"""Components and schedulers replaced as in Diffusers: what is put in is what runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from perfuse import DiffusionPipeline
from perfuse.errors import InputError
from perfuse.models import AutoencoderKL
from perfuse_conformance.checkpoints import randomise

SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16}


@pytest.fixture
def pair(checkpoint: Callable[[str], Path]) -> tuple[DiffusionPipeline, Any]:
    """The same checkpoint in perfuse and in Diffusers."""
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("words"))
    theirs.set_progress_bar_config(disable=True)
    return DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu"), theirs


def difference(ours: DiffusionPipeline, theirs: Any) -> float:
    a = ours("a red circle", seed=0, output_type="np", **SETTINGS).images
    generator = torch.Generator("cpu").manual_seed(0)
    b = theirs("a red circle", generator=generator, output_type="np", **SETTINGS).images
    return float(np.abs(a - b).max())


@pytest.mark.slow
def test_an_autoencoder_of_another_scale(pair: tuple[DiffusionPipeline, Any]) -> None:
    ours, theirs = pair
    before = ours("a red circle", seed=0, output_type="np", **SETTINGS).images
    fields = dict(theirs.vae.config) | {"scaling_factor": 0.5, "use_post_quant_conv": False}
    theirs.vae = randomise(diffusers.AutoencoderKL.from_config(fields), seed=5)
    mine = AutoencoderKL.from_config({k: v for k, v in fields.items() if not k.startswith("_")})
    mine.load_state_dict(theirs.vae.state_dict())
    ours.vae = mine
    assert ours.spec.latents is not None
    assert ours.spec.latents.scaling_factor == 0.5
    assert difference(ours, theirs) <= 1 / 255
    assert np.abs(ours("a red circle", seed=0, output_type="np", **SETTINGS).images - before).max()


def test_models_of_diffusers_and_transformers(pair: tuple[DiffusionPipeline, Any]) -> None:
    ours, theirs = pair
    for name in ("unet", "vae", "text_encoder"):
        randomise(getattr(theirs, name), seed=7)
        setattr(ours, name, getattr(theirs, name))
    assert difference(ours, theirs) <= 1 / 255


def test_a_model_that_was_read_is_the_one_that_runs(pair: tuple[DiffusionPipeline, Any]) -> None:
    ours, theirs = pair
    with torch.no_grad():
        ours.unet.conv_out.weight.mul_(0.5)
        theirs.unet.conv_out.weight.mul_(0.5)
    assert difference(ours, theirs) <= 1 / 255


def test_a_denoiser_of_another_size(pair: tuple[DiffusionPipeline, Any]) -> None:
    ours, theirs = pair
    fields = dict(theirs.unet.config) | {"sample_size": 4}
    theirs.unet = randomise(diffusers.UNet2DConditionModel.from_config(fields), seed=3)
    ours.unet = theirs.unet
    picture = ours("a", seed=0, num_inference_steps=1, output_type="np").images
    generator = torch.Generator("cpu").manual_seed(0)
    expected = theirs("a", generator=generator, num_inference_steps=1, output_type="np").images
    assert picture.shape == expected.shape
    assert np.abs(picture - expected).max() <= 1 / 255


def test_a_model_of_another_kind_is_refused(pair: tuple[DiffusionPipeline, Any]) -> None:
    ours, theirs = pair
    with pytest.raises(InputError, match=r"vae was to be replaced by a UNet2DConditionModel"):
        ours.vae = theirs.unet


@pytest.mark.export
@pytest.mark.exhaustive
def test_a_model_put_in_is_exported(pair: tuple[DiffusionPipeline, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    ours, theirs = pair
    randomise(theirs.unet, seed=9)
    ours.unet = theirs.unet
    folder = ours.export(tmp_path / "onnx", to="onnx")
    exported = DiffusionPipeline.from_pretrained(folder)
    assert difference(exported, theirs) <= 1 / 255


def test_a_program_in_the_place_of_a_component(pair: tuple[DiffusionPipeline, Any]) -> None:
    ours, theirs = pair
    ours.text_encoder = ours.program("text_encoder")
    assert difference(ours, theirs) <= 1 / 255
