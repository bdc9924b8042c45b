"""T-GATE: no guidance after some steps, and cross-attentions that give what they gave before."""

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

torch = pytest.importorskip("torch")

Make = Callable[[str], Path]

GIVEN = {"prompt": "a red circle", "num_inference_steps": 5, "seed": 0, "output_type": "np"}


def opened(model: Path, *transforms: str, backend: str = "torch:cpu") -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(model, backend=backend, transforms=transforms)


def drawn(pipe: DiffusionPipeline, **more: Any) -> np.ndarray:
    return np.asarray(pipe(**{**GIVEN, **more}).images)


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "followed"])
def test_a_network_with_what_it_gives_itself(checkpoint: Make, kind: str) -> None:
    """Open, it is the plain one; closed, with its own attention, too; with another's it is not."""
    plain, pipe = opened(checkpoint(kind)), opened(checkpoint(kind), "t-gate:gate=2")
    signature = plain.program("unet").signature
    rng = np.random.default_rng(0)
    sizes = {"batch": 2, "latent_height": 7, "latent_width": 8, "sequence": 5}  # one of them odd
    given = {
        one.name: rng.normal(size=one.resolve(sizes)).astype(np.float32) for one in signature.inputs
    }
    expected = plain.program("unet")(**given)["out_sample"]
    gated = pipe.program("unet")
    more = {
        one.name: np.zeros(one.resolve(sizes), np.float32)
        for one in gated.signature.inputs
        if one.name not in given
    }
    found = gated(**given, **more)
    assert (found["out_sample"] == expected).all()
    kept = {f"kept_{name}": one for name, one in found.items() if name != "out_sample"}
    assert len(kept) == len(more) - 1
    half = np.array([0, 1], np.float32)
    again = gated(**given, gate=half, **kept)["out_sample"]
    assert np.abs(again - expected).max() <= 1e-6
    other = gated(**given, **{**more, "gate": half})["out_sample"]
    assert (other[0] == expected[0]).all()
    assert np.abs(other[1] - expected[1]).max() > 1e-3
    shut = gated(**given, **{**more, "gate": np.ones(2, np.float32)})  # nothing is computed there
    assert np.abs(shut.pop("out_sample")[1] - other[1]).max() <= 1e-6
    assert all((one == 0).all() for one in shut.values())


def test_guidance_ends_at_the_gate(checkpoint: Make) -> None:
    plain, pipe = opened(checkpoint("words")), opened(checkpoint("words"), "t-gate:gate=2")
    expected = drawn(plain)
    with Counted(pipe) as counted:
        picture = drawn(pipe)
    assert [len(call["sample"]) for call in counted.calls["unet"]] == [2, 2, 1, 1, 1]
    assert [float(call["gate"].max()) for call in counted.calls["unet"]] == [0, 0, 1, 1, 1]
    assert np.abs(picture - expected).max() > 1e-3
    assert (drawn(pipe) == picture).all()  # nothing is kept from the picture before
    assert pipe.approximate == ("t-gate:gate=2",)
    pickle.loads(pickle.dumps(pipe.plan.tasks))
    interval = drawn(opened(checkpoint("words"), "guidance-interval:stop=0.4"))
    assert np.abs(picture - interval).max() > 1e-4  # the text is not looked at
    whole = opened(checkpoint("words"), "t-gate:gate=5")
    assert (drawn(whole) == expected).all()
    alone = {"guidance_scale": 1.0}
    assert (drawn(pipe, **alone) == drawn(plain, **alone)).all()


def test_what_is_kept_is_each_picture_s(checkpoint: Make) -> None:
    pipe = opened(checkpoint("words"), "t-gate:gate=2")
    prompts = ["a red circle", "a square"]
    both = drawn(pipe, prompt=prompts, seed=[0, 1])
    for picture, prompt, seed in zip(both, prompts, (0, 1), strict=True):
        assert np.abs(drawn(pipe, prompt=prompt, seed=seed)[0] - picture).max() <= 1e-5


def test_it_goes_with_what_leaves_steps_out(checkpoint: Make) -> None:
    for transforms in (["t-gate:gate=2", "taylorseer"], ["taylorseer", "t-gate:gate=2"]):
        pipe = opened(checkpoint("words"), *transforms, "freeu")
        with Counted(pipe) as counted:
            drawn(pipe)
        assert [len(call["sample"]) for call in counted.calls["unet"]] == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("kind", "transforms", "message"),
    [
        ("words", ["t-gate:gate=0"], "gate=0 was given"),
        ("words", ["t-gate:gate=-1"], "gate=-1 was given"),
        ("words", ["t-gate"], "gate=10 was given, and there are 5 steps"),
        ("tiny", ["t-gate:gate=2"], "unet is a UNet2DModel, whose attentions have no gate"),
        ("sd3", ["t-gate:gate=2"], "whose attentions have no gate. Use guidance-interval"),
        ("words", ["deepcache", "t-gate:gate=2"], "Two transforms were asked for that run a part"),
        ("words", ["t-gate:gate=2", "deepcache"], "it takes gate, which that does not fit"),
    ],
)
def test_what_cannot_be_met(
    checkpoint: Make, kind: str, transforms: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        drawn(opened(checkpoint(kind), *transforms))


def test_guiders_that_run_a_worse_denoiser(checkpoint: Make) -> None:
    pipe = opened(checkpoint("words"), "t-gate:gate=2")
    with pytest.raises(InputError, match="runs a worse version of the denoiser"):
        drawn(pipe, guider="pag:pag_applied_layers=mid")


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino:CPU"])
def test_engines_draw_the_same(checkpoint: Make, tmp_path: Path, backend: str) -> None:
    """From the checkpoint, and from an export, which takes any gate."""
    reference = opened(checkpoint("sd1"), "t-gate:gate=2")
    expected = drawn(reference)
    engine = opened(checkpoint("sd1"), "t-gate:gate=2", backend=backend)
    assert np.abs(drawn(engine) - expected).max() <= 2 / 255
    to = backend.partition(":")[0].replace("runtime", "")
    folder = reference.export(tmp_path / "exported", to=to)
    exported = DiffusionPipeline.from_pretrained(folder, transforms=["t-gate:gate=2"])
    with Counted(exported) as counted:
        assert np.abs(drawn(exported) - expected).max() <= 2 / 255
    assert [len(call["sample"]) for call in counted.calls["unet"]] == [2, 2, 1, 1, 1]
    plain = DiffusionPipeline.from_pretrained(folder)
    assert plain.approximate == ()
    assert np.abs(drawn(plain) - drawn(opened(checkpoint("sd1")))).max() <= 2 / 255
    other = DiffusionPipeline.from_pretrained(folder, transforms=["t-gate:gate=3"])
    late = drawn(opened(checkpoint("sd1"), "t-gate:gate=3"))
    assert np.abs(drawn(other) - late).max() <= 2 / 255
    given = ("--model", folder, "--steps", 5, "--seed", 0, "--transform", "t-gate:gate=2", "--json")
    done = run(BLOCKED, "generate", "a red circle", *given, "--output", tmp_path / "picture.png")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["approximate"] == ["t-gate:gate=2"]
    picture = np.asarray(Image.open(tmp_path / "picture.png")) / 255
    assert np.abs(picture - expected[0]).max() <= 3 / 255
