"""First-Block Cache, TeaCache and MagCache: a transformer's later blocks left out, on every engine."""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.counted import Counted
from tests.deepened import deepened
from tests.test_torch_free import BLOCKED, run

from perfuse import DiffusionPipeline
from perfuse.errors import InputError
from perfuse.tasks.reusing import Look, reusing
from perfuse.transforms import first_block, magcache, teacache

torch = pytest.importorskip("torch")

Make = Callable[[str], Path]

KINDS = (
    "flux",
    "sd3",
    "pixart-sigma",
    "z-image",
    "klein",
    "qwen-image",
    "chroma",
    "sana",
    "sana-sprint",
    "lumina2",
    "qwen-image-21",
    "aura-flow",
    "cogview4",
)
#: One whose last blocks read what others gave, so that they are not run alone.
SKIPPING = "hunyuan-dit"
GIVEN = {"prompt": "a red circle", "num_inference_steps": 7, "seed": 0, "output_type": "np"}
SMALL = {"height": 16, "width": 16}


def opened(model: Path, *transforms: str, backend: str = "torch:cpu") -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(model, backend=backend, transforms=transforms)


def drawn(pipe: DiffusionPipeline, **more: Any) -> np.ndarray:
    return np.asarray(pipe(**{**GIVEN, **SMALL, **more}).images)


def inputs_of(pipe: DiffusionPipeline) -> dict[str, Any]:
    """What the denoiser is given at the first step of a picture."""
    with Counted(pipe) as counted:
        drawn(pipe, num_inference_steps=2, output_type="latent")
    return counted.calls["transformer"][0]


def kept_with_last(kind: str) -> int:
    """How many tensors the last blocks need: the picture's tokens, the text's, those between."""
    if kind in ("pixart-sigma", "sana", "sana-sprint"):
        return 1
    return 3 if kind in ("z-image", "aura-flow") else 2


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((kind, "first-block") for kind in (*KINDS, SKIPPING)),
        *((kind, "magcache") for kind in (*KINDS, SKIPPING)),
        ("flux", "first-block:blocks=3"),  # one of those with one stream
        *((kind, "first-block:last=1") for kind in KINDS),
        ("flux", "first-block:last=2"),
        ("klein", "first-block:blocks=2,last=1"),  # one of those with one stream
    ],
)
def test_what_the_blocks_added_gives_the_whole(
    checkpoint: Make, tmp_path: Path, kind: str, text: str
) -> None:
    folder = deepened(checkpoint(kind), tmp_path / kind) if "last" in text else checkpoint(kind)
    plain, pipe = opened(folder), opened(folder, text)
    given = inputs_of(plain)
    name = next(name for name in pipe.spec.components if "first" in name)
    assert pipe.spec.components[name].entry_of == "transformer"
    whole, part = pipe.program("transformer"), pipe.program(name)
    expected = plain.program("transformer")(**given)["out_sample"]
    outputs = whole(**given)
    added = {name: outputs[name] for name in part.signature.input_names if name in outputs}
    assert len(added) == (kept_with_last(kind) if "last" in text else 1)
    again = part(**given, **added)
    assert (outputs["out_sample"] == expected).all()
    assert (again["out_sample"] - expected).abs().max() <= 1e-5
    (sign,) = again.keys() - {"out_sample"}
    assert (again[sign] - outputs[sign]).abs().max() <= 1e-5
    assert outputs[sign].abs().max() > 1e-3
    for lost in added:
        other = part(**given, **{**added, lost: 0 * added[lost]})["out_sample"]
        assert (other - expected).abs().max() > 1e-5


# When


def test_first_blocks_decide_by_the_last_computed_step() -> None:
    rule = first_block.Options(threshold=0.1, warmup=2)
    look = partial(Look, total=9, computed=0)
    memory = rule.keep(look(index=0, sign=np.full(4, 10.0)), None)
    assert rule.reuses(look(index=1, sign=np.full(4, 10.0)), memory)[0] is False  # warm-up
    for value, reuses in ((10.9, True), (11.1, False), (9.05, True), (-10.0, False)):
        found, memory = rule.reuses(look(index=3, sign=np.full(4, value)), memory)
        assert found is reuses


def test_teacache_adds_up_what_changes_from_step_to_step() -> None:
    """The rescaled relative changes 0.2² + 0.25² + 0.2², of steps against the one before each."""
    rule = teacache.Options(threshold=0.12, coefficients=(1.0, 0.0, 0.0))
    look = partial(Look, total=9, computed=0)
    memory = rule.keep(look(index=0, sign=np.full(4, 1.0)), None)
    decided = []
    for index, value in enumerate((0.8, 1.0, 1.2), 1):
        reuses, memory = rule.reuses(look(index=index, sign=np.full(4, value)), memory)
        decided.append(reuses)
    assert memory.change == pytest.approx(0.2**2 + 0.25**2 + 0.2**2)
    assert decided == [True, True, False]
    memory = rule.keep(look(index=3, sign=np.full(4, 1.2)), memory)
    assert memory.change == 0.0
    assert rule.reuses(look(index=8, sign=np.full(4, 1.2)), memory)[0] is False  # the last step


def test_magcache_multiplies_ratios() -> None:
    """``|1 - 0.9| + |1 - 0.81|`` of two steps; a third would be one too many, and computes."""
    rule = magcache.Options(ratios=(1.0, *(0.9,) * 9), threshold=0.3, most=2, warmup=0.2)
    look = partial(Look, total=10, computed=0)
    memory, decided = rule.keep(look(index=0), None), []
    for index in range(1, 9):
        reuses, memory = rule.reuses(look(index=index), memory)
        memory = memory if reuses else rule.keep(look(index=index), memory)
        decided.append(reuses)
    assert decided == [False, True, True, False, True, True, False, True]
    assert memory.error == pytest.approx(0.1)
    assert list(magcache.stretched((1.0, 2.0, 3.0), 5)) == [1.0, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("transform", "whole", "part"),
    [
        ("first-block:threshold=1e9", [0], range(1, 7)),
        ("first-block:threshold=1e9,warmup=3", [0, 1, 2], range(1, 7)),
        ("first-block:threshold=1e-12", range(7), range(1, 7)),
        ("first-block:threshold=1e9,last=1", [0], range(1, 7)),
        ("first-block:threshold=1e-12,last=1", range(7), range(1, 7)),
        ("teacache:threshold=1e9", [0, 6], range(1, 7)),
        ("magcache:ratios=1+1+1,warmup=0.4,most=2", [0, 1, 2, 5], [3, 4, 6]),
        ("magcache-calibration", range(7), []),
    ],
)
def test_steps_that_are_computed(
    checkpoint: Make, transform: str, whole: list[int], part: list[int]
) -> None:
    plain, pipe = opened(checkpoint("sd3")), opened(checkpoint("sd3"), transform)
    with Counted(plain) as all_steps:
        expected = drawn(plain)
    with Counted(pipe) as counted:
        picture = drawn(pipe)
    times = all_steps.steps("transformer")
    (name,) = (name for name in pipe.spec.components if "first" in name)
    assert counted.steps("transformer") == [times[i] for i in whole]
    assert counted.steps(name) == [times[i] for i in part]
    assert (picture == expected).all() == (len(whole) == 7)
    assert (drawn(pipe) == picture).all()  # nothing is kept from the picture before
    exact = transform == "magcache-calibration"
    assert pipe.approximate == (() if exact else (transform,))
    again = pickle.loads(pickle.dumps(pipe.plan))
    assert hash(again.tasks) == hash(pipe.plan.tasks)


# Faults: what a loop of its own tells apart


@dataclass(frozen=True, kw_only=True)
class NeverRefreshed(first_block.Options):
    """Compares with what it saw first."""

    def keep(self, look: Look, memory: Any) -> Any:
        return look.sign if memory is None else memory


@dataclass(frozen=True, kw_only=True)
class StepBefore(first_block.Options):
    """Compares with the step before, though all blocks did not run there."""

    def reuses(self, look: Look, memory: Any) -> tuple[bool, Any]:
        return super().reuses(look, memory)[0], look.sign


def by_hand(pipe: DiffusionPipeline, threshold: float, faulty: str = "") -> tuple[Any, list[int]]:
    """First-Block Cache in a loop of its own: what is drawn, and the steps that are computed.

    Args:
        pipe: A pipeline with the transform, whose programs are asked here.
        threshold: The transform's.
        faulty: ``"wrong branch"``: each gets what was kept for the other one; ``"negative"``: the
            branch without the prompt decides.
    """
    from perfuse.run.tools import PipelineTools
    from perfuse.tasks.denoise import advance, answers, guide

    tools = PipelineTools(pipe)
    part = next(name for name in pipe.spec.components if "first" in name)
    given = {**GIVEN, **SMALL}
    state: Mapping[str, Any] = {}
    for event in pipe.task.run(tools, given):
        if event.step == "place_inputs":
            state = event.state
            break
    state, kept, sign, computed = dict(state), {}, None, []
    leading = "negative" if faulty == "negative" else "positive"
    for index in range(len(state["schedule"].timesteps)):
        state["index"] = index
        names = ("samples", "schedule", "timesteps", "batches", "guider")
        ask = partial(answers, tools, index, *(state[name] for name in names))
        found = None
        if kept:
            found = ask(denoiser=part, kept=kept)
            now = found[leading]["sign_1"]
            if (now - sign).abs().mean() / sign.abs().mean() > threshold:
                found = None
        if found is None:
            computed.append(index)
            found = ask()
            kept = {name: {"added_1": one["added_1"]} for name, one in found.items()}
            if faulty == "wrong branch":
                kept = dict(zip(kept, reversed(kept.values()), strict=True))
            sign = found[leading]["sign_1"]
        state["predictions"] = {name: one["out_sample"] for name, one in found.items()}
        for step in (guide, advance):
            state |= step(tools, **{n: state[n] for n in step.inputs if n in state})
    return state["samples"][0], computed


@pytest.mark.parametrize(
    "fault", [None, NeverRefreshed, StepBefore, "wrong branch", "negative"], ids=str
)
def test_faults_are_found(checkpoint: Make, fault: Any) -> None:
    """Ours and the loop above agree; with a fault in either, at some threshold they do not."""
    pipe, found = opened(checkpoint("sd3"), "first-block"), False
    plain = opened(checkpoint("sd3")).task
    part = next(one for name, one in pipe.spec.components.items() if "first" in name)
    kind, whole = fault if isinstance(fault, type) else first_block.Options, pipe.spec.denoiser
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
        expected, computed = by_hand(pipe, threshold, fault if isinstance(fault, str) else "")
        pipe.task = reusing(plain, whole, [part], kind(threshold=threshold))
        with Counted(pipe) as counted:
            latents = pipe(**{**GIVEN, **SMALL, "output_type": "latent"}).images
        same = len(counted.steps("transformer")) == len(computed)
        if found := not (same and torch.allclose(latents, expected, atol=1e-4)):
            break
    assert found == (fault is not None)


# With others


def test_it_goes_with_others(checkpoint: Make) -> None:
    """With what leaves steps out, guidance that ends or begins, and a worse version's branch."""
    first = "first-block:threshold=1e9"
    for transforms in ((first, "taylorseer"), ("taylorseer", first)):
        with Counted(pipe := opened(checkpoint("sd3"), *transforms)) as counted:
            drawn(pipe)
        assert len(counted.steps("transformer")) == 1
        assert len(counted.steps("transformer_first_1")) == 4  # of the steps 0, 1, 2, 4 and 6
    with Counted(pipe := opened(checkpoint("sd3"), first)) as counted:
        drawn(pipe, guider="classifier-free:guidance_scale=4,start=0.4")
    assert len(counted.steps("transformer")) == 2  # again where a branch has nothing kept
    with Counted(pipe) as counted:
        drawn(
            pipe,
            guider="slg:guidance_scale=4,skip_layer_guidance_layers=blocks.0,skip_layer_guidance_stop=1",
        )
    worse = next(name for name in counted.calls if "perturbed" in name)
    assert len(counted.steps(worse)) == len(set(counted.steps(worse)))  # once a step
    both = drawn(pipe, num_images_per_prompt=2, seed=[3, 4])
    alone = [drawn(pipe, seed=seed)[0] for seed in (3, 4)]
    assert np.abs(both - np.stack(alone)).max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "transforms", "message"),
    [
        ("words", ["first-block"], "which is not of blocks in a row"),
        (
            "sd3",
            ["first-block", "magcache:ratios=1+1"],
            "Two transforms were asked for that run a part",
        ),
        ("sd3", ["first-block:threshold=nan"], "threshold=nan was given"),
        ("sd3", ["first-block:threshold=-1"], "threshold=-1.0 was given"),
        ("sd3", ["first-block:warmup=9"], "warmup=9 was given, and there are 7 steps"),
        ("sd3", ["first-block:blocks=0"], "blocks=0 was given; it must be at least 1"),
        ("sd3", ["first-block:blocks=3"], "transformer has 3, so that up to 2 can be the first"),
        ("sd3", ["first-block:last=-1"], "last=-1 was given; it must be at least 0"),
        ("sd3", ["first-block:last=2"], "has 3, so that up to 2 can be the first and last ones"),
        (SKIPPING, ["first-block:last=1"], "read what those in its first half gave"),
        ("sd3", ["teacache:coefficients=1+nan"], "finite numbers were expected"),
        ("sd3", ["teacache:threshold=0"], "threshold=0.0 was given"),
        ("sd3", ["magcache"], "magcache was asked for with 0 ratios"),
        ("sd3", ["magcache:ratios=1+-1"], "ratios=-1.0 was given"),
        ("sd3", ["magcache:ratios=1+1,warmup=2"], "warmup=2.0 was given; it is a share"),
        ("sd3", ["magcache:ratios=1+1,most=0"], "most=0 was given"),
    ],
)
def test_what_cannot_be_met(
    checkpoint: Make, kind: str, transforms: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        drawn(opened(checkpoint(kind), *transforms))


def test_a_calibration_takes_two_steps(checkpoint: Make) -> None:
    pipe = opened(checkpoint("sd3"))
    with pytest.raises(InputError, match="asked for with 1 step"):
        magcache.measured(pipe, "a red circle", num_inference_steps=1, **SMALL)
    text = magcache.measured(pipe, "a red circle", num_inference_steps=7, seed=0, **SMALL)
    assert len(text.split("+")) == 7
    pipe.add_transform(f"{text},threshold=0.5")
    assert np.isfinite(drawn(pipe)).all()


# Engines


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("backend", "kind", "text"),
    [
        *(("onnxruntime", kind, "first-block:threshold=0.4") for kind in KINDS),
        *(("openvino:CPU", kind, "first-block:threshold=0.4") for kind in KINDS),
        *(("onnxruntime", kind, "first-block:threshold=0.4,last=1") for kind in KINDS),
        *(("openvino:CPU", kind, "first-block:threshold=0.4,last=1") for kind in KINDS),
        ("onnxruntime", "flux", "teacache:threshold=0.5"),
        ("openvino:CPU", "sd3", "teacache:threshold=0.5"),
    ],
)
def test_engines_draw_the_same(
    checkpoint: Make, tmp_path: Path, backend: str, kind: str, text: str
) -> None:
    """The denoiser alone on an engine; its decisions are those of the reference."""
    placement = f"torch:cpu,transformer={backend}"
    folder = deepened(checkpoint(kind), tmp_path / kind) if "last" in text else checkpoint(kind)
    reference, engine = (
        opened(folder, text, backend=target) for target in ("torch:cpu", placement)
    )
    with Counted(reference) as expected, Counted(engine) as counted:
        distance = np.abs(drawn(reference) - drawn(engine)).max()
    assert counted.steps("transformer") == expected.steps("transformer")
    assert distance <= 2 / 255


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_exports(checkpoint: Make, tmp_path: Path, format: str) -> None:
    """An export is drawn from with any threshold, without the transform, and without torch."""
    model = checkpoint("sd3")
    folder = opened(model, "first-block").export(tmp_path / "exported", to=format)
    for text in ("first-block:threshold=0.4", "first-block:threshold=1e9"):
        exported = DiffusionPipeline.from_pretrained(folder, transforms=[text])
        reference = opened(model, text)
        with Counted(reference) as expected, Counted(exported) as counted:
            assert np.abs(drawn(exported) - drawn(reference)).max() <= 2 / 255
        assert counted.steps("transformer") == expected.steps("transformer")
    plain = DiffusionPipeline.from_pretrained(folder)
    assert plain.approximate == ()
    assert np.abs(drawn(plain) - drawn(opened(model))).max() <= 2 / 255
    weights = {
        name: sum(file.stat().st_size for file in (folder / name).iterdir())
        for name in ("transformer", "transformer_first_1")
    }
    assert weights["transformer_first_1"] < 0.8 * weights["transformer"]  # one block of two
    given = ("--model", folder, "--steps", 7, "--seed", 0, "--transform", "first-block", "--json")
    more = ("--height", 16, "--width", 16, "--output", tmp_path / "picture.png")
    done = run(BLOCKED, "generate", "a red circle", *given, *more)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["approximate"] == ["first-block"]
    picture = np.asarray(Image.open(tmp_path / "picture.png")) / 255
    assert np.abs(picture - drawn(opened(model, "first-block"))[0]).max() <= 3 / 255
