"""Autoencoders in tiles and one picture at a time, against Diffusers' own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from perfuse import DiffusionPipeline

SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "height": 40, "width": 56}
"""The tiles of these checkpoints are 16 pixels wide, and begin every 12."""
Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def theirs(checkpoint: Make) -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("words"))
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.enable_tiling()
    return pipe


def drawn(ours: DiffusionPipeline, count: int = 1) -> np.ndarray:
    more = {"num_images_per_prompt": count, "output_type": "np"}
    return np.asarray(ours("a red circle", seed=0, **more, **SETTINGS).images)


def expected(theirs: Any, count: int = 1) -> np.ndarray:
    more = {"num_images_per_prompt": count, "output_type": "np"}
    generator = torch.Generator().manual_seed(0)
    return np.asarray(theirs("a red circle", generator=generator, **more, **SETTINGS).images)


def test_tiles_are_diffusers(checkpoint: Make, theirs: Any) -> None:
    ours = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    whole = drawn(ours)
    ours.enable_vae_tiling()
    tiled = drawn(ours)
    assert np.abs(tiled - expected(theirs)).max() <= 1e-4
    assert np.abs(tiled - whole).max() > 1 / 255  # the tiles are seen, on random weights
    ours.disable_vae_tiling()
    assert (drawn(ours) == whole).all()


def test_slices_are_diffusers(checkpoint: Make, theirs: Any) -> None:
    ours = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    ours.enable_vae_tiling()
    ours.enable_vae_slicing()
    program, batches = ours.program("vae_decoder"), []

    class Watched(type(program)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.signature, self.torch_device = program.signature, program.torch_device

        def __call__(self, **inputs: Any) -> Any:
            batches.append(tuple(inputs["latent_sample"].shape))
            return program(**inputs)

        def close(self) -> None: ...

    ours._programs.prepare("vae_decoder", "watched", Watched)
    theirs.vae.enable_slicing()
    assert np.abs(drawn(ours, 2) - expected(theirs, 2)).max() <= 1e-4
    theirs.vae.disable_slicing()
    assert {shape[0] for shape in batches} == {1}
    assert max(max(shape[2:]) for shape in batches) == 8  # latents, of 16 pixels


def test_an_export_decodes_in_tiles(exported: Callable[[str, str], Path], theirs: Any) -> None:
    pytest.importorskip("onnxruntime")
    ours = DiffusionPipeline.from_pretrained(exported("words", "onnx"), backend="onnxruntime:cpu")
    ours.enable_vae_tiling()
    assert np.abs(drawn(ours) - expected(theirs)).max() <= 2 / 255


def test_a_picture_is_encoded_in_tiles(checkpoint: Make, theirs: Any) -> None:
    picture = np.random.default_rng(0).random((1, 40, 56, 3)).astype(np.float32)
    settings = {"num_inference_steps": 4, "strength": 0.5, "output_type": "np"}
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**theirs.components)
    img2img.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    wanted = img2img("a", image=picture, generator=generator, **settings).images
    ours = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    ours.enable_vae_tiling()
    got = ours("a", image=picture, seed=0, **settings).images
    assert np.abs(got - wanted).max() <= 1e-4
