"""The tiny autoencoder against Diffusers': outputs, files, and in the place of a pipeline's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from perfuse import DiffusionPipeline
from perfuse.arrays.metadata import png_info, read
from perfuse.errors import CheckpointError, PerfuseError
from perfuse.models import AutoencoderTiny
from perfuse_conformance.checkpoints import randomise

SMALL: dict[str, Any] = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 2],
    "num_decoder_blocks": [2, 1],
}


@pytest.fixture
def pair() -> tuple[AutoencoderTiny, Any]:
    theirs = randomise(diffusers.AutoencoderTiny(**SMALL), seed=3).eval()
    ours = AutoencoderTiny(**SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("act_fn", ["relu", "silu", "gelu"])
@pytest.mark.parametrize(("stages", "latents"), [([1, 3, 3, 3], 4), ([2, 1], 16)])
@torch.no_grad()
def test_outputs_and_names(act_fn: str, stages: list[int], latents: int, tmp_path: Path) -> None:
    widths = [12] * len(stages)
    fields = {"act_fn": act_fn, "latent_channels": latents, "upsample_fn": "nearest"}
    for half, blocks in (("encoder", stages), ("decoder", stages[::-1])):
        fields |= {f"{half}_block_out_channels": widths, f"num_{half}_blocks": blocks}
    theirs = randomise(diffusers.AutoencoderTiny(**fields), seed=1).eval()
    theirs.save_pretrained(tmp_path)
    ours = AutoencoderTiny.from_pretrained(tmp_path).eval()
    picture = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = theirs.encode(picture).latents
    torch.testing.assert_close(ours.encode(picture).latents, wanted, rtol=1e-5, atol=1e-5)
    decoded = theirs.decode(wanted).sample
    torch.testing.assert_close(ours.decode(wanted).sample, decoded, rtol=1e-5, atol=1e-5)


def test_blocks_of_several_widths_are_refused() -> None:
    with pytest.raises(CheckpointError, match="one width for all blocks"):
        AutoencoderTiny(**{**SMALL, "encoder_block_out_channels": [8, 16]})


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_in_a_pipeline(
    pair: tuple[AutoencoderTiny, Any], checkpoint: Callable[[str], Path], whose: str
) -> None:
    mine, its = pair
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("words"), vae=its)
    theirs.set_progress_bar_config(disable=True)
    ours = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    ours.vae = mine if whose == "ours" else its
    given = {"num_inference_steps": 2, "height": 16, "width": 24, "output_type": "np"}
    wanted = theirs("a", generator=torch.Generator().manual_seed(0), **given).images
    assert np.abs(ours("a", seed=0, **given).images - wanted).max() <= 1e-4
    picture = np.random.default_rng(0).random((1, 16, 24, 3)).astype(np.float32)
    start = {"image": picture, "strength": 0.5, "num_inference_steps": 4, "output_type": "np"}
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**theirs.components)
    img2img.set_progress_bar_config(disable=True)
    wanted = img2img("a", generator=torch.Generator().manual_seed(0), **start).images
    assert np.abs(ours("a", seed=0, **start).images - wanted).max() <= 1e-4


@pytest.mark.parametrize("backend", ["torch:cpu", "onnxruntime:cpu", "openvino:CPU"])
def test_by_its_folder(
    pair: tuple[AutoencoderTiny, Any],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    backend: str,
) -> None:
    _, its = pair
    its.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("words"), vae=its)
    theirs.set_progress_bar_config(disable=True)
    ours = DiffusionPipeline.from_pretrained(checkpoint("words"), backend=backend, vae=tmp_path)
    given = {"num_inference_steps": 2, "height": 16, "width": 24}
    wanted = theirs("a", generator=torch.Generator().manual_seed(0), output_type="np", **given)
    drawn = ours("a", seed=0, **given).images[0]
    assert np.abs(np.asarray(drawn) - 255 * wanted.images[0]).max() <= 2
    drawn.save(tmp_path / "a.png", pnginfo=png_info(drawn))
    assert read(tmp_path / "a.png").replaced == ("vae",)


def test_what_cannot_take_its_place(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model, export = checkpoint("words"), tmp_path / "export"
    AutoencoderTiny(**SMALL, latent_channels=16).save_pretrained(tmp_path / "wide")
    DiffusionPipeline.from_pretrained(model).export(export, to="onnx")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x08")
    for given, folder, message in (
        (model, tmp_path / "gone", "there is no .*config.json"),
        (model, tmp_path / "wide", "16 channels; those of .* have 4"),
        (model, model / "unet", "a UNet2DConditionModel; .* has a AutoencoderKL there"),
        (model, damaged, "damaged"),
        (export, model / "vae", "exported already"),
    ):
        with pytest.raises(PerfuseError, match=message):
            DiffusionPipeline.from_pretrained(given, vae=str(folder))


def test_it_draws_previews(
    pair: tuple[AutoencoderTiny, Any], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """They are the schedule's clean guess, as Diffusers' autoencoder decodes it."""
    _, its = pair
    its.save_pretrained(tmp_path)
    ours = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    given = {"num_inference_steps": 3, "height": 16, "width": 24, "seed": 0}
    plain, seen = ours("a", **given).images[0], 0
    for event in ours.stream("a", **given):
        shown = ours.preview(event, vae=tmp_path)
        if event.step != "denoise":
            assert shown is None
            continue
        state, seen = event.state, seen + 1
        before, prediction = state["previous_samples"][0], state["prediction"]
        level = ours.scheduler.alphas_cumprod[int(state["schedule"].timesteps[state["index"]])]
        clean = (before - (1 - level) ** 0.5 * prediction) / level**0.5
        with torch.no_grad():
            wanted = its.decode(clean).sample[0].permute(1, 2, 0).numpy()
        wanted = np.round((wanted / 2 + 0.5).clip(0, 1) * 255)
        assert np.abs(np.asarray(shown[0]) - wanted).max() <= 1
    assert seen == 3
    assert np.array_equal(event.state["images"][0], plain)
