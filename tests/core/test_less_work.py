"""Transforms that leave work out: which steps they compute, and what stands for the others."""

import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.counted import Counted

from perfuse import DiffusionPipeline
from perfuse.arrays.metadata import Metadata, of
from perfuse.errors import InputError
from perfuse.tasks.skipping import Answer, Seen, skipping
from perfuse.transforms import easycache, hicache, seacache, spectrum, taylorseer

torch = pytest.importorskip("torch")

Make = Callable[[str], Path]

GIVEN = {"prompt": "a red circle", "num_inference_steps": 10, "seed": 0, "output_type": "np"}
FORECASTS = (
    "taylorseer",
    "hicache",
    "spectrum:warmup=4",
    "steps:compute=0+1+2+4+6+8",
    "easycache",
    "seacache",
)


def opened(model: Path, *transforms: str, backend: str = "torch:cpu") -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(model, backend=backend, transforms=transforms)


def drawn(pipe: DiffusionPipeline, **more: Any) -> np.ndarray:
    return np.asarray(pipe(**{**GIVEN, **more}).images)


# What stands for a step


def test_taylorseer_is_that_of_diffusers() -> None:
    from diffusers.hooks.taylorseer_cache import TaylorSeerState

    steps, rng = (0, 1, 2, 4, 7), np.random.default_rng(0)
    outputs = {i: torch.from_numpy(rng.normal(size=(2, 3))) for i in steps}
    for order in (0, 1, 2, 3):
        theirs = TaylorSeerState(taylor_factors_dtype=torch.float64, max_order=order)
        for i in steps:
            theirs.current_step = i
            theirs.update((outputs[i],))
        ours = taylorseer.Options(order=order)
        kept = steps[-ours.depth :]
        for index in (8, 9, 12):
            theirs.current_step = index
            weights = ours.weights(kept, index, 20)
            guess = sum(w * outputs[i] for w, i in zip(weights, kept, strict=True))
            assert torch.allclose(guess, theirs.predict()[0], rtol=1e-12, atol=1e-12)


def test_hicache_s_polynomials() -> None:
    """Equal intervals ``n``: ``F + Δ/n σ 2σk + Δ²/n² σ² (4σ²k² - 2) / 2``."""
    sigma, n, k = 0.7, 3, 2
    a, b, c = 1.5, -2.0, 4.0  # the predictions at steps 2, 5, 8
    first, second = (c - b) / n, (c - 2 * b + a) / n**2
    expected = c + first * 2 * sigma**2 * k + second * sigma**2 * (4 * (sigma * k) ** 2 - 2) / 2
    weights = hicache.Options(order=2, sigma=sigma).weights((2, 5, 8), 8 + k, 20)
    assert np.dot(weights, (a, b, c)) == pytest.approx(expected, rel=1e-12)


def test_spectrum_is_a_ridge_regression() -> None:
    """The same fit as least squares with ``√λ`` times the identity below."""
    steps, total, degree, ridge = (0, 1, 2, 3, 5, 8), 30, 4, 0.1
    predictions = np.random.default_rng(0).normal(size=(len(steps), 7))

    def row(index: int) -> list[float]:
        return [math.cos(m * math.acos(2 * index / total - 1)) for m in range(degree + 1)]

    system = np.concatenate([[row(i) for i in steps], math.sqrt(ridge) * np.eye(degree + 1)])
    wanted = np.concatenate([predictions, np.zeros((degree + 1, 7))])
    coefficients = np.linalg.lstsq(system, wanted, rcond=None)[0]
    weights = spectrum.Options(degree=degree, ridge=ridge).weights(steps, 11, total)
    assert np.allclose(weights @ predictions, row(11) @ coefficients, rtol=1e-9)


def test_spectrum_asks_ever_more_seldom() -> None:
    rule, steps = spectrum.Options(window=2.0, grow=0.75, warmup=5), [0]
    for index in range(1, 30):
        if rule.computes(index, tuple(steps)):
            steps.append(index)
    assert steps == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25]


def test_seacache_is_that_of_diffusers() -> None:
    """Its filter, for numpy and torch, and at which steps it computes."""
    from diffusers.hooks import sea_cache

    rng, total, computed, expected = np.random.default_rng(0), 20, [], []
    settings = {"threshold": 0.3, "power_exp": 3.0, "cache_end_steps": 1, "retention_steps": 2}
    config = sea_cache.SeaCacheConfig(**settings, max_consecutive_cached=3)
    shared, state = sea_cache.SeaCacheSharedState(), sea_cache.SeaCacheContextState()
    rule, memory = seacache.Options(threshold=0.3, warmup=2, most=3), None
    clean, noise = rng.normal(size=(2, 1, 3, 7, 8)).astype(np.float32)
    for index in range(total):
        sigma = 1 - (index + 0.5) / total
        latents = (1 - sigma) * clean.cumsum(-1).cumsum(-2) + sigma * noise
        seen = Seen(
            index=index, total=total, sample=latents, noising=(1 - sigma, sigma), latents=latents
        )
        theirs = sea_cache._apply_sea_filter(torch.from_numpy(latents).movedim(1, -1), sigma, 3.0)
        ours = rule._filtered(seen)
        assert np.allclose(ours, theirs.movedim(-1, 1), atol=1e-4)
        on_torch = rule._filtered(replace(seen, latents=torch.from_numpy(latents)))
        assert np.allclose(ours, on_torch, atol=1e-4)
        told = sea_cache._SeaCacheForwardMetadata(index, sigma, total)
        if shared.resolve_gate(state, told, [theirs], config):
            expected.append(index)
            state.consecutive_cached = 0
        else:
            state.consecutive_cached += 1
        asked, memory = rule.asks(seen, memory) if memory is not None else (True, None)
        if asked:
            computed.append(index)
            memory = rule.keep(seen, Answer(guided=latents, positive=latents), memory)
    assert computed == expected
    assert 5 < len(computed) < 15


def test_seacache_guesses_along_a_line() -> None:
    at = partial(Seen, total=9, sample=None, noising=(0.5, 0.5), latents=np.ones((1, 1, 4, 4)))
    for order, expected in ((1, 3.0 + 2 * (3.0 - 1.0) / 2), (0, 3.0)):
        rule, memory = seacache.Options(order=order), None
        for index, value in ((0, 1.0), (2, 3.0)):
            memory = rule.keep(at(index=index), Answer(guided=value, positive=value), memory)
        assert rule.guess(at(index=4), memory) == pytest.approx(expected)


# Which steps are computed


@pytest.mark.parametrize(
    ("transform", "computed"),
    [
        ("taylorseer:interval=3,warmup=2", [0, 1, 4, 7]),
        ("hicache:interval=2,warmup=3", [0, 1, 2, 4, 6, 8]),
        ("spectrum:warmup=4", [0, 1, 2, 3, 5, 7]),
        ("steps:compute=0+2+3+9", [0, 2, 3, 9]),
    ],
)
def test_steps_that_are_computed(checkpoint: Make, transform: str, computed: list[int]) -> None:
    plain, pipe = opened(checkpoint("words")), opened(checkpoint("words"), transform)
    with Counted(plain) as all_steps:
        expected = drawn(plain)
    with Counted(pipe) as counted:
        picture = drawn(pipe)
    assert counted.steps() == [all_steps.steps()[i] for i in computed]
    assert counted.predictions() == 2 * len(computed)
    assert np.isfinite(picture).all()
    assert np.abs(picture - expected).max() > 1e-3
    assert (drawn(pipe) == picture).all()  # nothing is kept from the picture before


@pytest.mark.parametrize(
    "transform",
    [
        "taylorseer:interval=1",
        "hicache:interval=1",
        "spectrum:window=1,grow=0",
        "steps:compute=0+1+2+3+4+5+6+7+8+9",
        "easycache:threshold=1e-12",
        "seacache:threshold=1e-12",
        "guidance-interval:start=0,stop=1",
    ],
)
def test_nothing_left_out_is_the_plain_picture(checkpoint: Make, transform: str) -> None:
    plain = drawn(opened(checkpoint("words")))
    assert (drawn(opened(checkpoint("words"), transform)) == plain).all()


def straightforward_easycache(
    pipe: DiffusionPipeline, threshold: float, warmup: int
) -> tuple[Any, list[int]]:
    """EasyCache in a loop of its own: what is drawn, and the steps that are computed."""
    from perfuse.run.tools import PipelineTools
    from perfuse.tasks.denoise import advance, guide, predict

    tools = PipelineTools(pipe)
    given = {name: value for name, value in GIVEN.items() if name != "output_type"}
    state: Mapping[str, Any] = {}
    for event in pipe.task.run(tools, {**given, "output_type": "np"}):
        if event.step == "place_inputs":
            state = event.state
            break
    state, computed = dict(state), []
    error, rate, total = 0.0, None, len(state["schedule"].timesteps)
    before = last_x = last_positive = residual = None
    for index in range(total):
        state["index"] = index
        x = state["schedule"].scale_input(index, state["samples"][0])
        computes = index < warmup or index == total - 1 or rate is None
        if not computes:
            error += float(rate * (x - before).abs().mean() / last_positive.abs().mean())
            computes = error >= threshold
        before = x
        if computes:
            error = 0.0
            computed.append(index)
            state |= _run(predict, tools, state)
            state |= _run(guide, tools, state)
            positive = state["predictions"]["positive"]
            if last_x is not None:
                rate = float((positive - last_positive).abs().mean() / (x - last_x).abs().mean())
            last_x, last_positive, residual = x, positive, state["prediction"] - x
        else:
            state["prediction"] = x + residual
        state |= _run(advance, tools, state)
    return state["samples"][0], computed


def _run(step: Any, tools: Any, state: Mapping[str, Any]) -> Mapping[str, Any]:
    return step(tools, **{n: state[n] for n in step.inputs if n in state})


def test_easycache_decides_as_its_paper_says(checkpoint: Make) -> None:
    given = {"output_type": "latent", "num_inference_steps": 10}
    decided = set()
    for threshold in (0.02, 0.2, 1.0):
        plain = opened(checkpoint("words"))
        pipe = opened(checkpoint("words"), f"easycache:threshold={threshold},warmup=2")
        expected, computed = straightforward_easycache(plain, threshold, 2)
        with Counted(plain) as all_steps:
            drawn(plain, **given)
        with Counted(pipe) as counted:
            latents = pipe(**{**GIVEN, **given}).images
        assert counted.steps() == [all_steps.steps()[i] for i in computed]
        assert torch.allclose(latents, expected, atol=1e-5)
        decided.add(len(computed))
    assert len(decided) > 1


SCALE = 7.5


class NeverRefreshed(easycache.Options):
    """Keeps what it was told first."""

    def keep(self, seen: Any, answer: Any, memory: Any) -> Any:
        kept = super().keep(seen, answer, memory)
        return kept if memory is None or memory.rate is None else replace(memory, error=0.0)


class ByTheNegativeBranch(easycache.Options):
    """Decides by the prediction without the prompt."""

    def keep(self, seen: Any, answer: Any, memory: Any) -> Any:
        negative = (answer.guided - SCALE * answer.positive) / (1 - SCALE)
        return super().keep(seen, replace(answer, positive=negative), memory)


class NeverReset(easycache.Options):
    """Goes on adding to the error of steps before the last computed one."""

    def keep(self, seen: Any, answer: Any, memory: Any) -> Any:
        error = memory.error if memory is not None else 0.0
        return replace(super().keep(seen, answer, memory), error=error)


@pytest.mark.parametrize("fault", [None, NeverRefreshed, NeverReset])
def test_faults_of_easycache_are_found(checkpoint: Make, fault: type[Any] | None) -> None:
    """What the comparison with the loop above tells apart; without a fault, nothing."""
    given = {"output_type": "latent", "guidance_scale": SCALE}
    found = False
    for threshold in (0.05, 0.1, 0.2, 0.4):
        pipe = opened(checkpoint("words"))
        expected, computed = straightforward_easycache(pipe, threshold, 2)
        rule = (fault or easycache.Options)(threshold=threshold, warmup=2)
        pipe.task = skipping(pipe.task, rule)
        with Counted(pipe) as counted:
            latents = pipe(**{**GIVEN, **given}).images
        same = len(counted.steps()) == len(computed) and torch.allclose(
            latents, expected, atol=1e-5
        )
        if found := not same:
            break
    assert found == (fault is not None)


def test_the_decision_looks_at_the_prediction_with_the_prompt() -> None:
    zeros = np.zeros((1, 2), dtype=np.float32)

    def at(index: int, sample: Any) -> Seen:
        return Seen(index=index, total=9, sample=sample, noising=(0.5, 0.5), latents=sample)

    def remembered(kind: type[Any]) -> tuple[Any, Any]:
        rule, memory = kind(threshold=0.1, warmup=1), None
        for index, positive in enumerate((zeros + 1, zeros + 3)):
            memory = rule.keep(
                at(index, zeros + index), Answer(guided=-7 * positive, positive=positive), memory
            )
        return rule, memory

    rule, memory = remembered(easycache.Options)
    assert memory.rate == 2.0
    asks, memory = rule.asks(at(2, zeros + 1.1), memory)
    assert not asks
    assert memory.error == pytest.approx(2.0 * 0.1 / 3, rel=1e-5)
    assert remembered(ByTheNegativeBranch)[1].rate > 4  # the fault would be seen


# Guidance at some steps alone


def test_guidance_in_an_interval_is_the_guider_s(checkpoint: Make) -> None:
    pipe = opened(checkpoint("words"), "guidance-interval:start=0.2,stop=0.6")
    with Counted(pipe) as counted:
        picture = drawn(pipe, guidance_scale=4.0)
    assert counted.predictions() == 10 + 4
    text = "classifier-free:guidance_scale=4,start=0.2,stop=0.6"
    assert (picture == drawn(opened(checkpoint("words")), guider=text)).all()
    inner = drawn(pipe, guider="apg:guidance_scale=4,start=0.4,stop=0.9")
    text = "apg:guidance_scale=4,start=0.4,stop=0.6"
    assert (inner == drawn(opened(checkpoint("words")), guider=text)).all()


@pytest.mark.parametrize("guider", ["apg", "cfg-zero-star", "pag:pag_applied_layers=up", "none"])
def test_every_guider_takes_part(checkpoint: Make, guider: str) -> None:
    plain = drawn(opened(checkpoint("words")), guider=guider)
    pipe = opened(checkpoint("words"), "taylorseer")
    with Counted(pipe) as counted:
        picture = drawn(pipe, guider=guider)
    assert len(counted.steps()) == 6
    assert np.isfinite(picture).all()
    assert np.abs(picture - plain).max() > 1e-4


def test_a_guider_without_an_interval_is_refused(checkpoint: Make) -> None:
    pipe = opened(checkpoint("words"), "guidance-interval")
    with Counted(pipe) as counted, pytest.raises(InputError, match="PAGGuidance has no start"):
        drawn(pipe, guider="pag:pag_applied_layers=up")
    assert not counted.calls


def test_a_batch_is_drawn_as_its_pictures(checkpoint: Make) -> None:
    for transform in ("taylorseer", "spectrum:warmup=4"):
        pipe = opened(checkpoint("words"), transform)
        both = drawn(pipe, num_images_per_prompt=2, seed=[3, 4])
        alone = [drawn(pipe, seed=seed)[0] for seed in (3, 4)]
        assert np.abs(both - np.stack(alone)).max() < 1e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_transformers_take_part(checkpoint: Make, kind: str) -> None:
    ways = (("taylorseer", 6), ("easycache:threshold=1e9", 4), ("seacache:threshold=1e9", 4))
    for transform, computed in ways:
        pipe = opened(checkpoint(kind), transform)
        with Counted(pipe) as counted:
            picture = drawn(pipe)
        assert len(counted.steps(pipe.spec.denoiser.name)) == computed
        assert np.isfinite(picture).all()
    with pytest.raises(InputError, match="which has no shallow part"):
        drawn(opened(checkpoint(kind), "deepcache"))


# What is said


def test_an_approximation_is_named(checkpoint: Make, tmp_path: Path) -> None:
    pipe = opened(checkpoint("words"), "easycache:threshold=0.2", "prompts")
    image = pipe(**{**GIVEN, "output_type": "pil", "num_inference_steps": 4}).images[0]
    noted = of(image)
    assert noted.transforms == ("easycache:threshold=0.2", "prompts")
    assert noted.approximate == ("easycache:threshold=0.2",)
    assert Metadata.from_json(noted.to_json()) == noted
    former = json.loads(noted.to_json())
    del former["approximate"]  # as pictures of before have it
    assert Metadata.from_json(json.dumps(former)).approximate == ()
    assert opened(checkpoint("words")).approximate == ()


def test_no_task_has_the_names_of_what_is_kept() -> None:
    """A name of the state that a task's own steps use would be overwritten."""
    from perfuse.plugins import host, resolve

    names = {"asked", "remembered", "kept_states"}
    references = {one for m in host().pipelines().values() for one in m.tasks.values()}
    assert len(references) > 10
    for reference in references:
        assert not names & resolve(reference).known, reference


def test_plans_are_plain_data(checkpoint: Make) -> None:
    for transform in (*FORECASTS, "guidance-interval"):
        plan = opened(checkpoint("words"), transform).plan
        again = pickle.loads(pickle.dumps(plan))
        assert again.tasks == plan.tasks
        assert hash(again.tasks) == hash(plan.tasks)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (["taylorseer:interval=20"], "interval=20 was given, and there are 10 steps"),
        (["spectrum:window=11"], "window=11.0 was given, and there are 10 steps"),
        (["easycache:warmup=11"], "warmup=11 was given, and there are 10 steps"),
        (["steps:compute=0+40"], "compute has step 40, and there are 10 steps"),
        (["taylorseer", "easycache"], "Two transforms were asked for that leave out steps"),
        (["taylorseer:interval=0"], "interval=0 was given; it must be a number of at least 1"),
        (["taylorseer:order=-1"], "order=-1 was given"),
        (["hicache:sigma=nan"], "sigma=nan was given"),
        (["spectrum:ridge=-1"], "ridge=-1.0 was given"),
        (["spectrum:grow=nan"], "grow=nan was given"),
        (["easycache:threshold=nan"], "threshold=nan was given; it must be a finite number"),
        (["easycache:threshold=-0.1"], "threshold=-0.1 was given"),
        (["steps"], "list the steps to compute"),
        (["steps:compute=0+2+1"], "compute=0.2.1 was given"),
        (["guidance-interval:start=0.6,stop=0.2"], "Guidance was to run from 0.6 to 0.2"),
        (["guidance-interval:stop=1.5"], "stop must be between 0 and 1"),
    ],
)
def test_what_cannot_be_met(checkpoint: Make, transforms: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe = opened(checkpoint("words"), *transforms)
        with Counted(pipe) as counted:
            drawn(pipe)
    assert "counted" not in locals() or not counted.calls  # before any work


# Engines


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_engines_decide_alike(
    exported: Callable[[str, str], Path], checkpoint: Make, format: str
) -> None:
    folder = exported("words", format)
    for transform in FORECASTS:
        reference, engine = (
            opened(checkpoint("words"), transform),
            DiffusionPipeline.from_pretrained(folder, transforms=[transform]),
        )
        with Counted(reference) as expected, Counted(engine) as counted:
            distance = np.abs(drawn(reference) - drawn(engine)).max()
        assert counted.steps() == expected.steps()
        assert distance <= 2 / 255
