"""DeepCache: a UNet's last layers as an entry of their own, on every engine and in exports."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.counted import Counted
from tests.test_torch_free import BLOCKED, run

from perfuse import DiffusionPipeline
from perfuse.errors import InputError

pytest.importorskip("torch")

Make = Callable[[str], Path]

GIVEN = {"prompt": "a red circle", "num_inference_steps": 7, "seed": 0, "output_type": "np"}


def opened(model: Path, *transforms: str, backend: str = "torch:cpu") -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(model, backend=backend, transforms=transforms)


def drawn(pipe: DiffusionPipeline, **more: Any) -> np.ndarray:
    return np.asarray(pipe(**{**GIVEN, **more}).images)


def arrays(signature: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of a denoiser."""
    rng = np.random.default_rng(seed)
    sizes = {"batch": 2, "latent_height": 8, "latent_width": 8, "sequence": 5}
    return {
        one.name: rng.normal(size=one.resolve(sizes)).astype(np.float32) for one in signature.inputs
    }


@pytest.mark.parametrize(
    ("kind", "transforms"),
    [
        ("sd1", ["deepcache"]),
        ("sdxl", ["deepcache"]),
        ("words", ["deepcache:layers=1"]),
        ("followed", ["deepcache"]),  # with a ControlNet's residuals
        ("sd1", ["freeu", "deepcache"]),
        ("sd1", ["deepcache", "freeu"]),
    ],
)
def test_its_own_state_gives_the_whole(checkpoint: Make, kind: str, transforms: list[str]) -> None:
    pipe = opened(checkpoint(kind), *transforms)
    plain = opened(checkpoint(kind), *(one for one in transforms if one == "freeu"))
    name = next(name for name in pipe.spec.components if "shallow" in name)
    whole, part = pipe.program("unet"), pipe.program(name)
    assert pipe.spec.components[name].entry_of == "unet"
    given = arrays(plain.program("unet").signature)
    outputs = whole(**given)
    (state,) = outputs.keys() - {"out_sample"}
    few = {n: array for n, array in given.items() if n in part.signature.input_names}
    again = part(**few, **{state: outputs[state]})["out_sample"]
    expected = plain.program("unet")(**given)["out_sample"]
    assert (np.asarray(outputs["out_sample"]) == np.asarray(expected)).all()
    assert np.abs(np.asarray(again) - np.asarray(expected)).max() <= 1e-6
    other = part(**few, **{state: 0 * outputs[state]})["out_sample"]
    assert np.abs(np.asarray(other) - np.asarray(expected)).max() > 1e-3


def test_the_whole_runs_once_in_some_steps(checkpoint: Make) -> None:
    plain, pipe = opened(checkpoint("sd1")), opened(checkpoint("sd1"), "deepcache:every=3")
    with Counted(plain) as all_steps:
        expected = drawn(plain)
    with Counted(pipe) as counted:
        picture = drawn(pipe)
    times = all_steps.steps()
    assert counted.steps("unet") == [times[i] for i in (0, 3, 6)]
    assert counted.steps("unet_shallow_1") == [times[i] for i in (1, 2, 4, 5)]
    assert counted.predictions("unet_shallow_1") == 2 * 4
    assert np.abs(picture - expected).max() > 1e-3
    assert (drawn(pipe) == picture).all()  # nothing is kept from the picture before
    assert pipe.approximate == ("deepcache:every=3",)
    pickle.loads(pickle.dumps(pipe.plan.tasks))
    one = opened(checkpoint("sd1"), "deepcache:every=1")
    assert (drawn(one) == expected).all()


def test_states_are_those_of_each_branch(checkpoint: Make) -> None:
    """With guidance that ends, and with branches that run another entry."""
    pipe = opened(checkpoint("words"), "deepcache:every=3", "guidance-interval:stop=0.3")
    with Counted(pipe) as counted:
        drawn(pipe)
    assert counted.predictions("unet") == 2 + 1 + 1
    assert counted.predictions("unet_shallow_1") == 2 * 1 + 1 * 3
    pag = {"guider": "pag:pag_applied_layers=up"}
    with Counted(pipe := opened(checkpoint("words"), "deepcache:every=3")) as counted:
        drawn(pipe, **pag)
    assert counted.predictions("perturbed_identity_up") == 7
    assert counted.predictions("unet") == 2 * 3
    late = "classifier-free:guidance_scale=4,start=0.4"
    with Counted(pipe) as counted:
        drawn(pipe, guider=late)  # a branch that has no state yet
    assert len(counted.steps("unet")) == 3


def test_every_task_takes_part(checkpoint: Make) -> None:
    """Pictures that begin as others, or in parts: their loops have steps and names of their own."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    mask = Image.new("L", image.size, 255)
    mask.paste(0, (0, 0, 8, 16))
    plain, pipe = opened(checkpoint("sd1")), opened(checkpoint("sd1"), "deepcache", "easycache")
    for more in ({}, {"mask_image": mask}):
        given = {"image": image, "strength": 0.9, **more}
        with Counted(pipe) as counted:
            picture = drawn(pipe, **given)
        assert len(counted.steps("unet")) == 2
        assert np.isfinite(picture).all()
        assert np.abs(picture - drawn(plain, **given)).max() > 1e-3


def test_it_goes_with_what_leaves_steps_out(checkpoint: Make) -> None:
    for transforms in (["deepcache", "taylorseer"], ["taylorseer", "deepcache"]):
        pipe = opened(checkpoint("words"), *transforms)
        with Counted(pipe) as counted:
            drawn(pipe)
        assert len(counted.steps("unet")) == 2  # at 0 and 4 of the steps 0, 1, 2, 4 and 6
        assert len(counted.steps("unet_shallow_1")) == 3


@pytest.mark.parametrize(
    ("kind", "transforms", "message"),
    [
        ("words", ["deepcache:every=0"], "every=0 was given"),
        ("words", ["deepcache:every=8"], "every=8 was given, and there are 7 steps"),
        ("words", ["deepcache:layers=2"], "the last block of unet has 2"),
        ("words", ["deepcache:layers=-1"], "layers=-1 was given"),
        ("tiny", ["deepcache"], "unet is a UNet2DModel, which has no shallow part"),
    ],
)
def test_what_cannot_be_met(
    checkpoint: Make, kind: str, transforms: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        drawn(opened(checkpoint(kind), *transforms))


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino:CPU"])
def test_engines_draw_the_same(checkpoint: Make, tmp_path: Path, backend: str) -> None:
    """From the checkpoint, and from an export, which takes any ``every``."""
    reference = opened(checkpoint("sd1"), "deepcache:every=3")
    expected = drawn(reference)
    assert (
        np.abs(
            drawn(opened(checkpoint("sd1"), "deepcache:every=3", backend=backend)) - expected
        ).max()
        <= 2 / 255
    )
    folder = reference.export(
        tmp_path / "exported", to=backend.partition(":")[0].replace("runtime", "")
    )
    exported = DiffusionPipeline.from_pretrained(folder, transforms=["deepcache:every=3"])
    with Counted(exported) as counted:
        assert np.abs(drawn(exported) - expected).max() <= 2 / 255
    assert len(counted.steps("unet")) == 3
    assert len(counted.steps("unet_shallow_1")) == 4
    plain = DiffusionPipeline.from_pretrained(folder)
    assert plain.approximate == ()
    assert np.abs(drawn(plain) - drawn(opened(checkpoint("sd1")))).max() <= 2 / 255
    other = DiffusionPipeline.from_pretrained(folder, transforms=["deepcache:every=2"])
    assert (
        np.abs(drawn(other) - drawn(opened(checkpoint("sd1"), "deepcache:every=2"))).max()
        <= 2 / 255
    )
    given = ("--model", folder, "--steps", 7, "--seed", 0, "--transform", "deepcache", "--json")
    done = run(BLOCKED, "generate", "a red circle", *given, "--output", tmp_path / "picture.png")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["approximate"] == ["deepcache"]
    picture = np.asarray(Image.open(tmp_path / "picture.png")) / 255
    assert np.abs(picture - expected[0]).max() <= 3 / 255
