"""Tasks that start from a picture: on engines, from an export without torch, and what they refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfuse import DDIMScheduler, DiffusionPipeline
from perfuse.arrays.masks import blurred, crop_region, filled, overlaid
from perfuse.arrays.noise import noise_for
from perfuse.errors import CheckpointError, InputError
from perfuse_conformance.checkpoints import edit_json

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]


def picture(size: tuple[int, int] = (16, 16)) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def mask(size: tuple[int, int] = (16, 16)) -> Image.Image:
    found = Image.new("L", size, 0)
    found.paste(255, (8, 4, 14, 16))
    return found


@pytest.fixture(scope="module")
def pipe(checkpoint: Make) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")


@pytest.mark.parametrize(
    ("format", "backend"),
    [
        ("onnx", "onnxruntime"),
        pytest.param("openvino", "openvino", marks=pytest.mark.exhaustive),
    ],
)
def test_an_export_draws_from_pictures_as_the_checkpoint_does(
    exported: Export, pipe: DiffusionPipeline, format: str, backend: str
) -> None:
    pytest.importorskip(backend)
    other = DiffusionPipeline.from_pretrained(exported("words", format))
    given: dict[str, Any] = {"num_inference_steps": 4, "seed": 3, "image": picture()}
    for more in ({"strength": 0.6}, {"mask_image": mask()}):
        a, b = (
            np.asarray(one("a red circle", **given, **more).images[0]).astype(int)
            for one in (pipe, other)
        )
        assert a.std() > 5
        assert np.abs(a - b).max() <= 2


def test_the_task_follows_from_the_inputs(pipe: DiffusionPipeline) -> None:
    given = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    named = {
        "text-to-image": {},
        "image-to-image": {"image": picture()},
        "inpainting": {"image": picture(), "mask_image": mask()},
    }
    for name, inputs in named.items():
        chosen = pipe("red", **given, **inputs).images
        asked = pipe("red", task=name, **given, **inputs).images
        assert (chosen == asked).all()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"image": picture(), "strength": 0}, "strength 0 leaves none of the 2 steps"),
        ({"image": picture(), "strength": 2}, "strength must be a number from 0 to 1; got 2"),
        ({"image": picture(), "strength": "much"}, "strength must be a number"),
        ({"image": picture((1, 1))}, "1 x 1 pixels, smaller"),
        ({"image": "photo.png"}, "A str was given as a picture"),
        ({"image": [picture()] * 3}, "3 images were given for 1 pictures"),
        ({"mask_image": mask()}, "inpainting needs image"),
        ({"image": picture(), "mask_image": mask(), "padding_mask_crop": -1}, "at least 0; got -1"),
        (
            {"image": picture((24, 16)), "mask_image": mask(), "padding_mask_crop": 1},
            "the image is 24 x 16 pixels and the mask 16 x 16",
        ),
        (
            {"image": picture(), "mask_image": Image.new("L", (16, 16)), "padding_mask_crop": 1},
            "the mask is black",
        ),
    ],
)
def test_refused(pipe: DiffusionPipeline, inputs: dict[str, Any], words: str) -> None:
    task = "inpainting" if "mask_image" in inputs else "image-to-image"
    with pytest.raises(InputError, match=words):
        pipe("red", task=task, num_inference_steps=2, seed=0, **inputs)


@pytest.mark.parametrize("kind", ["RGBA", "P", "LA", "I;16", "1", "CMYK"])
def test_pictures_of_any_kind(pipe: DiffusionPipeline, kind: str) -> None:
    given = picture().convert("L") if kind == "I;16" else picture()
    one = Image.fromarray(np.asarray(given).astype(np.uint16) * 257) if kind == "I;16" else None
    image = one if one is not None else given.convert(kind)
    drawn = pipe("red", image=image, num_inference_steps=2, seed=0).images[0]
    assert drawn.size == (16, 16)
    if kind == "I;16":  # a 16-bit grey is as bright as the 8-bit one
        plain = pipe("red", image=given, num_inference_steps=2, seed=0).images[0]
        assert np.abs(np.asarray(drawn).astype(int) - np.asarray(plain)).max() <= 2


def test_a_model_that_takes_other_channels_is_refused(pipe: DiffusionPipeline) -> None:
    from perfuse.tasks.instruct_pix2pix import INSTRUCT_PIX2PIX

    with pytest.raises(InputError, match="this denoiser takes 0 channels besides"):
        list(INSTRUCT_PIX2PIX.run(pipe, {"prompt": "red", "image": picture()}))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("format", "backend"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
@pytest.mark.parametrize(("kind", "times"), [("latent-upscaler", 2), ("depth-estimated", 1)])
def test_an_export_of_a_model_for_pictures_draws_as_the_checkpoint_does(
    exported: Export, checkpoint: Make, format: str, backend: str, kind: str, times: int
) -> None:
    pytest.importorskip(backend)
    pipes = [
        DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu"),
        DiffusionPipeline.from_pretrained(exported(kind, format)),
    ]
    given: dict[str, Any] = {"num_inference_steps": 4, "seed": 3}
    for size in ((16, 16), (24, 16)):
        a, b = (
            np.asarray(one("a red circle", image=picture(size), **given).images[0]).astype(int)
            for one in pipes
        )
        assert a.shape == (times * size[1], times * size[0], 3)
        assert a.std() > 5
        assert np.abs(a - b).max() <= 2


def test_upscaling_in_latents_refuses(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("latent-upscaler"), backend="torch:cpu")
    odd = np.zeros((1, 4, 9, 8), np.float32)
    states = np.zeros((1, 77, 32), np.float32)
    refused: dict[str, dict[str, Any]] = {
        "smaller than 4 x 4": {"image": picture((3, 3))},
        "latents 9 x 8 were given as image; this model takes multiples of 2": {"image": odd},
        "The latents differ in shape": {"image": [odd[:, :, :8], odd[:, :, :6]]},
        "A str was given as a picture": {"image": "small.png"},
        "2 images were given for 1 pictures": {"image": [picture(), picture()]},
        "needs image": {},
        "Only one of prompt_embeds and pooled_prompt_embeds": {
            "image": picture(),
            "prompt": None,
            "prompt_embeds": states,
        },
    }
    for words, inputs in refused.items():
        with pytest.raises(InputError, match=words):
            pipe(**{"prompt": "red", "num_inference_steps": 1, "seed": 0, **inputs})
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match="DDIMScheduler, which has no noise levels"):
        pipe("red", image=picture(), num_inference_steps=1, seed=0)


def test_another_model_does_not_upscale_in_latents(pipe: DiffusionPipeline) -> None:
    from perfuse.tasks.latent_upscale import LATENT_UPSCALE

    with pytest.raises(InputError, match="This denoiser takes 4 channels, timestep, encoder"):
        list(LATENT_UPSCALE.run(pipe, {"prompt": "red", "image": picture()}))


def test_the_first_pictures_noise_is_that_of_their_own_seeds() -> None:
    alone, few = noise_for([3], batch=1), noise_for([3, 4], batch=2)
    assert (alone.normal((1, 4, 2, 2)) == few.first((1, 4, 2, 2))).all()


def test_masks() -> None:
    region = crop_region(mask((32, 32)), 16, 16, pad=1)
    assert region == (4, 3, 18, 17)
    part = filled(picture((32, 16)), 16, 16)
    assert part.size == (16, 16)
    soft = np.asarray(blurred(mask((32, 32)), 2))
    assert 0 < soft[10, 8] < 255
    whole = overlaid(mask(), picture(), Image.new("RGB", (16, 16), "white"), None)
    assert np.asarray(whole)[:4].tolist() == np.asarray(picture())[:4].tolist()
    assert (np.asarray(whole)[8, 10] == 255).all()


# ── Stable unCLIP ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.exhaustive
@pytest.mark.parametrize(("format", "backend"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_export_of_unclip_draws_as_its_checkpoint(
    exported: Export, checkpoint: Make, format: str, backend: str
) -> None:
    pytest.importorskip(backend)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("unclip"), backend="torch:cpu")
    other = DiffusionPipeline.from_pretrained(exported("unclip", format))
    given: dict[str, Any] = {"num_inference_steps": 4, "seed": 3, "noise_level": 30}
    a, b = (
        np.asarray(one(picture(), "a red circle", **given).images[0]).astype(int)
        for one in (pipe, other)
    )
    assert a.std() > 5
    assert np.abs(a - b).max() <= 2


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "image and image_embeds were given both, or neither"),
        ({"image": picture(), "noise_level": 1000}, "noise_level must be 0 to 999; got 1000"),
        ({"image": [picture()] * 2, "prompt": "red"}, "2 images were given for 1 prompts"),
        ({"image_embeds": np.zeros((1, 8), np.float32)}, r"an array \[pictures, 16\]"),
        ({"image": picture(), "latents": np.zeros((1, 4, 2, 2))}, "latents must have shape"),
    ],
)
def test_unclip_refuses(checkpoint: Make, inputs: dict[str, Any], words: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("unclip"), backend="torch:cpu")
    with pytest.raises(InputError, match=words):
        pipe(num_inference_steps=2, seed=0, **inputs)


def test_unclip_from_a_prompt_alone_says_what_it_needs(copy_of: Make) -> None:
    folder = copy_of("unclip")
    edit_json(folder / "model_index.json", _class_name="StableUnCLIPPipeline")
    with pytest.raises(CheckpointError, match="leaves out. It needs Karlo's prior"):
        DiffusionPipeline.from_pretrained(folder, bridged=False)
