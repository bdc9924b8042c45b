"""What a seed draws: within what the model takes, the same for the same seed, and as text."""

from dataclasses import replace

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.sources.opening import open_model
from perfuse.spec import PipelineSpec
from perfuse_conformance.cases.catalogue import Capability, cases_of
from perfuse_conformance.cases.draws import drawn_of
from perfuse_conformance.cases.probes import inputs_of, probes_of
from perfuse_conformance.cases.trials import (
    LAYOUTS,
    Trial,
    probe_for,
    trials_of,
)
from perfuse_conformance.judge.results import Result, Status
from perfuse_conformance.runner import layouts
from perfuse_conformance.runner.trial_cases import simplest

YES = Capability(level="full", reason="")
USUAL = Trial(batch=1, height=64, width=64, text=32, about=1.0)


@pytest.fixture(scope="module")
def spec() -> PipelineSpec:
    return open_model(None).spec


@pytest.mark.parametrize("thorough", [False, True])
def test_each_is_one_that_the_model_takes_and_is_read_back(
    spec: PipelineSpec, thorough: bool
) -> None:
    drawn = trials_of(spec, 3, thorough=thorough)
    assert drawn == trials_of(spec, 3, thorough=thorough) != trials_of(spec, 4, thorough=thorough)
    for id, trials in drawn.items():
        component = spec.components[id.split("/")[1]]
        for trial in trials:
            component.check_dims(probe_for(spec, component, trial, id).dims)
            assert Trial.parse(str(trial)) == trial
    assert len(drawn) > (200 if thorough else 60)


def test_what_is_drawn_goes_beyond_the_fixed_probes(spec: PipelineSpec) -> None:
    fixed = [probe.dims for probe in probes_of(spec).values() if probe.component == "unet"]
    for seed in range(20):
        (larger,), (smaller,) = (
            trials_of(spec, seed)[f"trial/unet/{name}"] for name in ("larger", "smaller")
        )
        assert max(larger.height, larger.width) > 64 > max(smaller.height, smaller.width)
        dims = probe_for(spec, spec.components["unet"], smaller, "").dims
        assert dims["latent_height"] < min(d["latent_height"] for d in fixed) or dims not in fixed
        few, some, many = (
            trials_of(spec, seed)[f"trial/text_encoder/{name}-words"][0].about
            for name in ("few", "some", "many")
        )
        assert 0 <= few <= 10 <= some <= 20 <= many <= 30


def test_the_claims_edge_is_asked_from_the_largest_down(spec: PipelineSpec) -> None:
    drawn = trials_of(spec, 0)
    sizes = [trial.height for trial in drawn["trial/unet/largest"]]
    assert sizes == sorted(sizes, reverse=True) and (sizes[0], sizes[-1]) == (128, 64)
    assert [trial.batch for trial in drawn["trial/unet/largest-batch"]] == [12, 6, 2, 1]
    assert drawn["trial/unet/longest-text"][0].text == 4 * 32
    assert drawn["trial/text_encoder/longest-text"][0].about == 30


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch=1", "Trial 'batch=1' was asked for"),
        (f"{USUAL},layout=upside-down", "its layout is one of contiguous, fortran"),
        (f"{USUAL},scale=nan", "its numbers are finite"),
        (f"{USUAL},depth=2", "was asked for; one is written as"),
    ],
)
def test_what_is_no_trial_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Trial.parse(text)


def test_scale_and_zeros(spec: PipelineSpec) -> None:
    unet = spec.components["unet"]

    def sample(scale: float) -> np.ndarray:
        probe = probe_for(spec, unet, replace(USUAL, scale=scale), "trial/unet/x")
        return inputs_of(unet, probe, seed=5)[0]["sample"]

    assert not sample(0.0).any()
    np.testing.assert_allclose(sample(100.0), 100 * sample(1.0), rtol=1e-6)
    tiny = np.abs(sample(1e-39))
    assert 0 < tiny.max() < np.finfo(np.float32).tiny * 10


def test_sizes_are_asked_of_a_program_that_takes_any_and_one_of_one_that_does_not(
    spec: PipelineSpec,
) -> None:
    both = {(name, "float32", mode): YES for name in spec.components for mode in _MODES}
    fixed = {key: said for key, said in both.items() if key[2] == "static"}
    names = {}
    for key, capabilities in {"both": both, "fixed": fixed}.items():
        cases = cases_of(spec, capabilities, ("float32",), "L2", trials=trials_of(spec, 0))
        trials = {case.id: case for case in cases if case.kind == "trial"}
        assert all(case.level == "L2" for case in trials.values())
        names[key] = {id for id in trials if "unet" in id}
        dyn = {id for id, case in trials.items() if case.profiles == ("dyn",)}
        assert dyn == {id for id in trials if "/symbolic/" in id}
    assert "trial/unet/float32/symbolic/larger" in names["both"]
    assert "trial/unet/float32/static/any-size" in names["both"]
    assert "trial/unet/float32/static/larger" in names["fixed"]
    assert len(names["both"]) == len(names["fixed"])


_MODES = ("static", "symbolic")


def test_the_simplest_that_fails_is_found(spec: PipelineSpec) -> None:
    """Whatever is wider than 76 pixels fails, if it is one of at least three."""
    trial = replace(
        USUAL, batch=7, height=96, width=124, about=3.5, scale=9.0, layout="offset", numbers=4
    )
    asked: list[Trial] = []

    def fails(other: Trial) -> Result | None:
        asked.append(other)
        wrong = other.width > 76 and other.batch >= 3
        return Result(id=str(other), level="L2", status=Status.FAIL_MISMATCH) if wrong else None

    first = Result(id="", level="L2", status=Status.FAIL_MISMATCH)
    found, judged = simplest(trial, first, fails, spec)
    assert found == replace(USUAL, batch=3, height=4, width=80, text=1, numbers=4)
    assert judged.id == str(found)
    assert len(asked) < 20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_holds_the_same_numbers(layout: str) -> None:
    for array in (np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.array([5], np.int64)):
        laid = layouts.LAYOUTS[layout](array)
        np.testing.assert_array_equal(laid, array)
        assert laid.dtype == array.dtype
    assert layouts.LAYOUTS.keys() == set(LAYOUTS)
    assert layouts.LAYOUTS["read-only"](array).flags.writeable is False
    assert layouts.LAYOUTS["offset"](np.zeros(4, np.float32)).ctypes.data % 16 == 4


def test_a_picture_is_drawn_within_what_the_pipeline_takes(spec: PipelineSpec) -> None:
    draws = [drawn_of(spec, seed)["drawn"] for seed in range(20)]
    assert len({draw.scheduler for draw in draws}) > 2
    assert all(draw.inputs["height"] % spec.size_multiple == 0 for draw in draws)
    assert drawn_of(spec, 3) == drawn_of(spec, 3)
    assert list(drawn_of(spec, 3, 3)) == ["drawn", "drawn-2", "drawn-3"]
