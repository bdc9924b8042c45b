"""Calibration: what counts as observed, and that only what was observed is written."""

import json

import pytest

from perfuse_conformance.judge.results import Claim, Metric, Result, Run, Status
from perfuse_conformance.judge.tolerances import TOLERANCES, Tolerances, error_of
from perfuse_conformance.runner.calibrate import Reading, observed, readings, updated

LIMITS = {limit.key: limit for limit in Tolerances.load().entries}
SNR = ("component", "float32", "snr_db")


def reading(value, *, key=SNR, limit=100.0, tolerances="a"):
    return Reading(
        key=key,
        value=value,
        limit=limit,
        tolerances=tolerances,
        target="a:cpu",
        model="shapes",
        seed="0",
        case="component/unet/float32/static/late",
    )


def run(*results):
    return Run(
        suite={"version": "1.0", "tolerances_sha256": "a"},
        run={"model": "shapes", "seed": "3"},
        host={},
        backend={"target": "a:cpu"},
        capabilities={},
        claim=Claim(level="L1"),
        results=results,
    )


def test_of_a_hundred_the_ninety_fifth():
    (seen,) = observed(reading(float(snr)) for snr in range(101, 201)).values()
    assert (seen.count, seen.p95, seen.worst.value) == (100, 106, 101)
    ratio = ("component", "float32", "rmse_ratio")
    (seen,) = observed(reading(n / 100, key=ratio, limit=3.0) for n in range(1, 101)).values()
    assert (seen.p95, seen.worst.value) == (0.95, 1.0)


def test_few_readings_give_the_worst_and_nothing_in_between():
    (seen,) = observed([reading(110.0), reading(130.0)]).values()
    assert seen.p95 == seen.worst.value == 110


def test_what_was_no_number_is_the_worst():
    (seen,) = observed([reading(110.0), reading(None)]).values()
    assert seen.worst.value is None
    assert seen.p95 != seen.p95


def test_a_picture_with_a_wider_limit_says_nothing():
    key = ("picture", "float16", "psnr_db")
    near, far = reading(70.0, key=key, limit=52.0), reading(20.0, key=key, limit=14.0)
    (seen,) = observed([near, far]).values()
    assert (seen.count, seen.worst) == (1, near)
    # Runs that other limits judged are compared among themselves.
    before = reading(60.0, key=key, limit=40.0, tolerances="b")
    (seen,) = observed([near, far, before]).values()
    assert (seen.count, seen.worst) == (2, before)


def test_the_readings_of_a_run():
    judged = Result(
        id="component/unet/float16/static/same-twice",
        level="L1",
        status=Status.PASS,
        precision="float16",
        executed_precision="float32",
        metrics=(
            Metric(name="snr_db", value=60.0, limit=50.0, bound="min"),
            Metric(name="repeat_rmse_ratio", value=0.0, limit=0.0),
            Metric(name="lpips", value=0.1),
        ),
    )
    drawn = Result(
        id="draw/float32/ddim",
        level="L2",
        status=Status.FAIL_MISMATCH,
        precision="float32",
        metrics=(
            Metric(name="rmse_ratio", value=5.0, limit=4.0),
            Metric(name="psnr_db", value=None, limit=58.0, bound="min"),
        ),
    )
    elsewhere = Result(
        id="component/unet/float32/static/late",
        level="L1",
        status=Status.PASS_FALLBACK,
        precision="float32",
        fallbacks=("torch",),
        metrics=(Metric(name="snr_db", value=60.0, limit=50.0, bound="min"),),
    )
    found = list(readings(run(judged, drawn, elsewhere)))
    assert [(r.key, r.value) for r in found] == [
        (("component", "float16", "snr_db"), 60.0),
        (("repeat", "float16", "rmse_ratio"), 0.0),
        (("free", "float32", "rmse_ratio"), 5.0),
        (("picture", "float32", "psnr_db"), None),
    ]
    assert {(r.target, r.model, r.seed) for r in found} == {("a:cpu", "shapes", "3")}


def test_what_was_observed_is_written_and_nothing_else(tmp_path):
    values = {
        SNR: 112.37,
        ("free", "bfloat16", "rmse_ratio"): 1.23456,
        ("picture", "float32", "ssim"): 0.99998765,
        ("repeat", "float32", "rmse_ratio"): 0.0,
    }
    seen = observed(
        reading(value, key=key, limit=LIMITS[key].limit) for key, value in values.items()
    )
    path = tmp_path / "tolerances.toml"
    path.write_text(
        updated(TOLERANCES.read_text(encoding="utf-8"), seen, "a run"), encoding="utf-8"
    )
    for limit in Tolerances.read(path).entries:
        before = LIMITS[limit.key]
        assert (limit.limit, limit.floor, limit.rationale) == (
            before.limit,
            before.floor,
            before.rationale,
        )
        if limit.key not in values:
            assert limit == before
            continue
        assert limit.evidence == "a run; 1 cases"
        metric, value = limit.metric, values[limit.key]
        # Rounded, and never to the better side.
        assert error_of(metric, limit.observed_p95) >= error_of(metric, value) * (1 - 1e-12)
        assert error_of(metric, limit.observed_p95) == pytest.approx(
            error_of(metric, value), rel=0.02
        )
        assert len(json.dumps(limit.observed_p95)) < 12


def test_every_limit_is_read_where_the_judge_puts_it():
    """A run of the judge's own names gives only keys that there are limits for."""
    for kind, precision, name in LIMITS:
        id = f"{'draw' if kind in ('free', 'picture') else kind}/{precision}/any"
        result = Result(
            id=id,
            level="L1",
            status=Status.PASS,
            precision=precision,
            metrics=(Metric(name=name, value=1.0, limit=1.0),),
        )
        (found,) = readings(run(result))
        assert found.key == (kind, precision, name)
