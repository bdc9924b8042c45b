"""Pyramid Attention Broadcast: what a transformer's attentions gave, used again, on every engine."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.counted import Counted

from perfuse import DiffusionPipeline
from perfuse.errors import InputError
from perfuse.tasks.reusing import Look
from perfuse.transforms import pab

torch = pytest.importorskip("torch")

Make = Callable[[str], Path]

#: Whose attention is of picture and text together.
JOINT = ("sd3", "flux", "chroma", "qwen-image", "aura-flow", "z-image", "lumina2")
GIVEN = {"prompt": "a red circle", "num_inference_steps": 8, "seed": 0, "output_type": "np"}
SMALL = {"height": 32, "width": 32}


def opened(model: Path, *transforms: str, backend: str = "torch:cpu") -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(model, backend=backend, transforms=transforms)


def drawn(pipe: DiffusionPipeline, **more: Any) -> np.ndarray:
    return np.asarray(pipe(**{**GIVEN, **SMALL, **more}).images)


@pytest.mark.parametrize(
    ("kind", "text", "kept"),
    [
        ("pixart-sigma", "pab:spatial=2,cross=0", "spatial"),
        ("pixart-sigma", "pab:spatial=0,cross=2", "cross"),
        ("pixart-sigma", "pab:spatial=2,cross=2", "spatial_cross"),
        ("sana", "pab:spatial=2,cross=2", "spatial_cross"),
        ("hunyuan-dit", "pab:spatial=2,cross=2", "spatial_cross"),
        ("sana-sprint", "pab:spatial=2,cross=2", "spatial_cross"),
        *((kind, "pab:spatial=2", "spatial") for kind in JOINT),
    ],
)
def test_an_entry_with_what_attentions_gave(
    checkpoint: Make, kind: str, text: str, kept: str
) -> None:
    """With what they gave at the same step it says the same; what it computes, it gives, too."""
    plain, pipe = opened(checkpoint(kind)), opened(checkpoint(kind), text)
    with Counted(plain) as counted:
        drawn(plain, num_inference_steps=2, output_type="latent")
    given = counted.calls["transformer"][0]
    name = f"transformer_without_{kept}"
    assert pipe.spec.components[name].entry_of == "transformer"
    whole, part = pipe.program("transformer"), pipe.program(name)
    expected = plain.program("transformer")(**given)["out_sample"]
    outputs = whole(**given)
    assert (outputs["out_sample"] == expected).all()
    taken = {one: outputs[one] for one in part.signature.input_names if one in outputs}
    assert len(taken) == len(outputs) - 1
    own = {n: array for n, array in given.items() if n in part.signature.input_names}
    again = part(**own, **taken)
    assert (again["out_sample"] - expected).abs().max() <= 1e-5
    assert again.keys() == {"out_sample"}
    for lost in taken:
        other = part(**own, **{**taken, lost: 0 * taken[lost]})["out_sample"]
        assert (other - expected).abs().max() > 1e-6, lost


def test_an_entry_gives_what_it_computes(checkpoint: Make) -> None:
    pipe = opened(checkpoint("pixart-sigma"), "pab:spatial=2,cross=4")
    with Counted(pipe) as counted:
        drawn(pipe, num_inference_steps=4)
    outputs = pipe.program("transformer")(**counted.calls["transformer"][0])
    part = pipe.program("transformer_without_cross")
    inputs = part.signature.input_names
    given = {n: a for n, a in {**counted.calls["transformer"][0], **outputs}.items() if n in inputs}
    found = part(**given)
    assert found.keys() == outputs.keys() - inputs
    for name, array in found.items():
        assert (array - outputs[name]).abs().max() <= 1e-5


# When


def test_kinds_are_used_again_by_their_ranges() -> None:
    rule = pab.Options(spatial=2, cross=4, start=100, stop=800)
    assert rule.together == (("spatial", "cross"), ("cross",))
    look = partial(Look, total=9, computed=0)
    steps = [look(index=index, timestep=700.0 - index) for index in range(8)]
    reuses = [rule.reuses(step, None)[0] for step in steps]
    assert reuses == [False, True, True, True, False, True, True, True]
    assert [rule.which(step) for step in steps if rule.reuses(step, None)[0]] == [0, 1, 0] * 2
    for timestep, within in ((800.0, False), (799.0, True), (101.0, True), (100.0, False)):
        assert rule.reuses(look(index=1, timestep=timestep), None)[0] is within
    assert pab.Options(spatial=3, cross=2).together == (
        ("spatial", "cross"),
        ("spatial",),
        ("cross",),
    )


def test_steps_that_are_computed(checkpoint: Make) -> None:
    plain = opened(checkpoint("pixart-sigma"))
    pipe = opened(checkpoint("pixart-sigma"), "pab:spatial=2,cross=4")
    with Counted(plain) as every:
        expected = drawn(plain)
    with Counted(pipe) as counted:
        picture = drawn(pipe)
    times = every.steps("transformer")
    within = [i for i, time in enumerate(times) if 100 < time < 800]
    assert 2 <= len(within) < 8
    for name, fits in (
        ("transformer_without_spatial_cross", lambda i: i % 2),
        ("transformer_without_cross", lambda i: i % 4 == 2),
    ):
        assert counted.steps(name) == [times[i] for i in within if fits(i)]
    computed = [i for i in range(8) if i not in within or i % 4 == 0]
    assert counted.steps("transformer") == [times[i] for i in computed]
    assert np.abs(picture - expected).max() > 1e-3
    assert (drawn(pipe) == picture).all()  # nothing is kept from the picture before
    assert pipe.approximate == ("pab:spatial=2,cross=4",)
    never = opened(checkpoint("pixart-sigma"), "pab:start=2000,stop=3000")
    assert (drawn(never) == expected).all()


def test_a_plan_with_it_is_plain_data(checkpoint: Make) -> None:
    plan = opened(checkpoint("sd3"), "pab").plan
    assert hash(pickle.loads(pickle.dumps(plan)).tasks) == hash(plan.tasks)


def test_it_goes_with_others(checkpoint: Make) -> None:
    pipe = opened(checkpoint("pixart-sigma"), "pab:start=0,stop=2000", "taylorseer")
    with Counted(pipe) as counted:
        drawn(pipe)
    assert len(counted.steps("transformer_without_spatial")) >= 1
    assert sum(len(counted.steps(name)) for name in counted.calls if "trans" in name) < 8
    with Counted(pipe := opened(checkpoint("sd3"), "pab:start=0,stop=2000")) as counted:
        drawn(pipe, guider="classifier-free:guidance_scale=4,start=0.4")
    assert counted.predictions("transformer") > len(counted.steps("transformer"))
    both = drawn(pipe, num_images_per_prompt=2, seed=[3, 4])
    alone = [drawn(pipe, seed=seed)[0] for seed in (3, 4)]
    assert np.abs(both - np.stack(alone)).max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "transforms", "message"),
    [
        ("words", ["pab"], "whose attentions perfuse does not keep"),
        ("cogview4", ["pab"], "whose attentions perfuse does not keep"),
        ("sd3", ["pab:cross=2"], "which has no cross attention of its own"),
        ("sd3", ["pab", "first-block"], "Two transforms were asked for that run a part"),
        ("sd3", ["pab:spatial=9"], "spatial=9 was given, and there are 8 steps"),
        ("sd3", ["pab:spatial=1"], "spatial=1 was given; it must be 2 or more"),
        ("sd3", ["pab:spatial=-2"], "spatial=-2 was given; it must be 2 or more"),
        ("sd3", ["pab:spatial=0"], "which leaves nothing out"),
        ("sd3", ["pab:start=nan"], "they are timesteps, start below stop"),
        ("sd3", ["pab:start=800,stop=100"], "they are timesteps, start below stop"),
    ],
)
def test_what_cannot_be_met(
    checkpoint: Make, kind: str, transforms: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        drawn(opened(checkpoint(kind), *transforms))


# Engines


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino:CPU"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("pixart-sigma", "pab:spatial=2,cross=4"),
        ("sana", "pab:spatial=2,cross=3"),
        *((kind, "pab:spatial=2") for kind in JOINT),
    ],
)
def test_engines_draw_the_same(checkpoint: Make, backend: str, kind: str, text: str) -> None:
    placement = f"torch:cpu,transformer={backend}"
    reference, engine = (
        opened(checkpoint(kind), text, backend=target) for target in ("torch:cpu", placement)
    )
    assert np.abs(drawn(reference) - drawn(engine)).max() <= 2 / 255


@pytest.mark.export
@pytest.mark.exhaustive
def test_an_export_draws_with_and_without(checkpoint: Make, tmp_path: Path) -> None:
    model = checkpoint("pixart-sigma")
    folder = opened(model, "pab:spatial=2,cross=4").export(tmp_path / "exported", to="onnx")
    for text in ("pab:spatial=2,cross=4", "pab:spatial=2,cross=4,start=0,stop=2000"):
        found = drawn(DiffusionPipeline.from_pretrained(folder, transforms=[text]))
        assert np.abs(found - drawn(opened(model, text))).max() <= 2 / 255
    plain = DiffusionPipeline.from_pretrained(folder)
    assert plain.approximate == ()
    assert np.abs(drawn(plain) - drawn(opened(model))).max() <= 2 / 255
