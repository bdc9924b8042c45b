"""What a picture says of itself: written, read again, and refused where it cannot be believed."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from perfuse.arrays.metadata import Metadata, Ran, attach, of, parameters, png_info, read
from perfuse.arrays.pictures import png_bytes, save_png
from perfuse.errors import InputError

Make = Callable[[str], Path]

METADATA = Metadata(
    model="runwayml/stable-diffusion-v1-5",
    revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    variant="fp16",
    task="text-to-image",
    inputs={
        "prompt": "a “red” circle, 円",
        "negative_prompt": "blue",
        "num_inference_steps": 20,
        "guidance_scale": 7.5,
    },
    seeds=(1 << 63,),
    picture=1,
    pictures=2,
    size=(512, 768),
    scheduler={"_class_name": "EulerAncestralDiscreteScheduler", "trained_betas": [0.1, 0.2]},
    backend="torch:cpu,unet=openvino:GPU",
    precision=None,
    options={"threads": "2"},
    transforms=("skip:every=2",),
    components={
        "unet": Ran(target="openvino:GPU", device="GPU", precision="float16", engine="openvino 1")
    },
    unrecorded=(),
    replaced=(),
    versions={"perfuse": "0.1.0"},
)


def picture() -> Image.Image:
    return Image.fromarray(np.full((4, 6, 3), 128, np.uint8))


def with_text(path: Path, text: str, name: str = "perfuse") -> Path:
    info = PngInfo()
    info.add_text(name, text)
    picture().save(path, pnginfo=info)
    return path


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(METADATA.to_json()), **fields})


# ── There and back ──────────────────────────────────────────────────────────────────────────────


def test_json_there_and_back() -> None:
    text = METADATA.to_json()
    assert text.isascii()
    assert Metadata.from_json(text) == METADATA


def test_pictures_of_before_there_were_loras() -> None:
    data = json.loads(METADATA.to_json())
    del data["loras"]
    assert Metadata.from_json(json.dumps(data)) == METADATA
    lora = {"file": "a.safetensors", "weight": 0.5, "fingerprint": "0f"}
    assert Metadata.from_json(changed(loras=[lora])).loras == (lora,)
    for wrong in ({**lora, "weight": "much"}, {**lora, "more": 1}, "a.safetensors", {"file": "a"}):
        with pytest.raises(InputError, match="its loras is not a list of files"):
            Metadata.from_json(changed(loras=[wrong]))


def test_a_file_there_and_back(tmp_path: Path) -> None:
    image = picture()
    attach(image, METADATA)
    assert of(image) == METADATA
    assert read(save_png(image, tmp_path / "a.png")) == METADATA
    image.save(tmp_path / "b.png", pnginfo=png_info(image))
    assert read(tmp_path / "b.png") == METADATA
    with Image.open(tmp_path / "a.png") as again:
        assert of(again) == METADATA
        assert again.info["parameters"] == parameters(METADATA)


def test_a_picture_alone(tmp_path: Path) -> None:
    image = picture()
    plain = png_bytes(image)
    attach(image, METADATA)
    assert png_bytes(image, metadata=False) == plain
    with pytest.raises(InputError, match="--no-metadata"):
        read(save_png(image, tmp_path / "a.png", metadata=False))


def test_parameters_as_other_programs_read_them() -> None:
    assert parameters(METADATA) == (
        "a “red” circle, 円\n"
        "Negative prompt: blue\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 9223372036854775808, Size: 768x512, "
        "Model: runwayml/stable-diffusion-v1-5, Batch size: 2, Batch pos: 1, Version: perfuse 0.1.0"
    )


def test_parameters_of_one_of_several_prompts() -> None:
    inputs = {"prompt": ["red", "blue"], "guidance_scale": 3.0}
    one = dataclasses.replace(
        METADATA, inputs=inputs, seeds=(3, 4), model="a: b", scheduler={"use_karras_sigmas": True}
    )
    first, last = parameters(one).splitlines()
    assert first == "blue"
    assert "Schedule type: Karras, CFG scale: 3, Seed: 4" in last
    assert 'Model: "a: b"' in last
    first = parameters(dataclasses.replace(one, picture=0)).splitlines()[0]
    assert first == "red"


def test_words_that_no_encoding_holds(tmp_path: Path) -> None:
    one = dataclasses.replace(METADATA, inputs={"prompt": "\ud800 \0 red"})
    image = picture()
    attach(image, one)
    assert read(save_png(image, tmp_path / "a.png")) == one


# ── What cannot be believed ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "damaged"),
        ("[1]", "not an object"),
        ("[" * 100_000, "damaged"),
        ('{"version": ' + "9" * 5000 + "}", "damaged"),
        ("{}", "version None"),
        (changed(version=2), "version 2.*reads version 1"),
        (changed(sed=1), "'sed', which this perfuse does not know"),
        (changed(inputs={"guidance_scale": float("nan")}), "NaN is no number"),
        (changed(inputs={"prompt": {"a": 1}}), "inputs is not an object of texts"),
        (changed(inputs={"prompt": ["x"] * 5000}), "inputs is not"),
        (changed(inputs=["prompt"]), "inputs is not"),
        (changed(model=None), "model is not text: None"),
        (changed(model="x" * 100_000), "model is not text: 'xxx.*\\.\\.\\."),
        (changed(model="x" * 300_000), "more than 262144"),
        (changed(seeds=[True]), "seeds is not a list of whole numbers"),
        (changed(seeds=3), "seeds is not"),
        (changed(size=[1, 2, 3]), "size is not two whole numbers"),
        (changed(size=[1, -2]), "size is not two whole numbers"),
        (changed(picture=2), "picture 2 of 2"),
        (changed(transforms="skip"), "transforms is not a list of texts"),
        (changed(options={"threads": 2}), "options is not an object of texts"),
        (changed(components={"unet": {"target": "torch"}}), "components is not"),
        (
            json.dumps({k: v for k, v in json.loads(METADATA.to_json()).items() if k != "seeds"}),
            "no seeds",
        ),
    ],
)
def test_what_cannot_be_believed(tmp_path: Path, text: str, words: str) -> None:
    path = with_text(tmp_path / "a.png", text)
    with pytest.raises(InputError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_files_that_are_no_pictures_of_ours(tmp_path: Path) -> None:
    whole = with_text(tmp_path / "whole.png", METADATA.to_json())
    assert read(whole) == METADATA
    picture().save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-20])
    flipped = bytearray(whole.read_bytes())
    flipped[60] ^= 1
    (tmp_path / "flipped.png").write_bytes(flipped)
    with_text(tmp_path / "theirs.png", "red\nSteps: 20", name="parameters")
    for name, words in (
        ("a.jpg", "it is a JPEG"),
        ("a.txt", "cannot be read as a picture"),
        ("empty.png", "cannot be read as a picture"),
        ("cut.png", "cannot be read as a picture"),
        ("flipped.png", "cannot be read as a picture"),
        ("theirs.png", "another program wrote it"),
        ("gone.png", "no picture at"),
        ("", "it is a folder"),
    ):
        with pytest.raises(InputError, match=words):
            read(tmp_path / name)


def test_a_text_that_unpacks_to_more_than_fits(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("perfuse", " " * (1 << 24), zip=True)
    picture().save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(InputError):
        read(tmp_path / "a.png")


# ── What a pipeline notes ───────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_what_a_pipeline_notes(checkpoint: Make) -> None:
    from perfuse import DiffusionPipeline, EulerDiscreteScheduler

    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("sd1"), backend="torch,unet=torch:cpu", precision="bfloat16"
    )
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    images = pipe(["red", "blue"], num_inference_steps=2, seed=np.int64(3), height=24).images
    first, second = (of(image) for image in images)
    assert dataclasses.replace(second, picture=0) == first
    assert (second.picture, second.pictures, second.size) == (1, 2, (24, 16))
    assert first.model == str(checkpoint("sd1"))
    assert first.inputs["prompt"] == ["red", "blue"]
    assert first.inputs["guidance_scale"] == 7.5
    assert first.inputs["height"] == 24
    assert "seed" not in first.inputs
    assert first.seeds == (3,)
    assert first.scheduler["_class_name"] == "EulerDiscreteScheduler"
    assert (first.backend, first.precision) == ("torch,unet=torch:cpu", "bfloat16")
    assert first.components["unet"].target == "torch:cpu"
    assert first.components["unet"].precision == "bfloat16"
    assert first.versions["perfuse"]
    assert (first.unrecorded, first.replaced) == ((), ())


def test_what_cannot_be_noted_is_named(checkpoint: Make) -> None:
    from perfuse import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    pipe.unet = pipe.unet
    latents = np.zeros((1, 3, 8, 8), np.float32)
    (image,) = pipe(num_inference_steps=1, latents=latents, seed=0).images
    assert of(image).unrecorded == ("latents",)
    assert of(image).replaced == ("unet",)
    array = pipe(num_inference_steps=1, seed=0, output_type="np").images
    assert isinstance(array, np.ndarray)


def test_a_bundled_model_is_not_a_folder_of_its_name(checkpoint: Make, tmp_path: Path) -> None:
    import shutil

    from perfuse import DiffusionPipeline
    from perfuse.shapes import BUNDLED

    folder = tmp_path / "shapes"
    shutil.copytree(checkpoint("tiny"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        pipe = DiffusionPipeline.from_pretrained("shapes", backend="torch:cpu")
        assert of(pipe(num_inference_steps=1, seed=0).images[0]).model == "./shapes"
    for name in BUNDLED:
        bundled = DiffusionPipeline.from_pretrained(name, backend="torch:cpu")
        assert of(bundled("red", num_inference_steps=1, seed=0).images[0]).model == name


@pytest.mark.parametrize("name", ["dpm++", "dpmsolver-sde", "euler-ancestral", "unipc", "lcm"])
def test_a_scheduler_is_made_again_of_what_is_noted(checkpoint: Make, name: str) -> None:
    from perfuse import DiffusionPipeline
    from perfuse.schedulers import scheduler_class, scheduler_from_config

    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    pipe.scheduler = scheduler_class(name).from_config(pipe.scheduler.config)
    given = {"num_inference_steps": 3, "seed": 0}
    first = pipe(**given).images[0]
    noted = Metadata.from_json(of(first).to_json())
    assert noted.unrecorded == ()
    pipe.scheduler = scheduler_from_config(noted.scheduler)
    again = pipe(**given).images[0]
    assert (np.asarray(first) == np.asarray(again)).all()
    assert of(again) == of(first)


def test_a_setting_of_the_scheduler_that_json_has_not(checkpoint: Make) -> None:
    from perfuse import DiffusionPipeline, DPMSolverMultistepScheduler

    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    config = {**pipe.scheduler.config, "lambda_min_clipped": float("inf")}
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    (image,) = pipe(num_inference_steps=1, seed=0).images
    assert of(image).unrecorded == ("the scheduler's lambda_min_clipped",)
