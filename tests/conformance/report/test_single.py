"""One case asked again, of a real engine."""

import json

import pytest
from click.testing import CliRunner
from tests.conformance.runs import component

from perfuse.errors import InputError
from perfuse_conformance.cli import conformance
from perfuse_conformance.judge.results import Status
from perfuse_conformance.report.single import judge_single, lines_of

pytestmark = pytest.mark.slow

LATE = "component/unet/float32/static/late"


def test_a_case_alone_has_its_numbers_and_grants_nothing():
    ddpm = ("--backend", "torch:cpu", "--model", "random-ddpm", "--level", "L1")
    done = CliRunner().invoke(conformance, [*ddpm, "--case", LATE, "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    (result,) = answer["torch:cpu"]
    assert (result["id"], result["status"]) == (LATE, "PASS")
    assert {metric["name"] for metric in result["metrics"]} == {"rmse_ratio", "snr_db"}
    assert set(answer) == {"torch:cpu"}  # no run, no claim
    with pytest.raises(InputError, match=rf"'{LATE}r' was asked for.*there is {LATE}, "):
        judge_single("torch:cpu", [LATE + "r"], model="random-ddpm", level="L1")


def test_a_case_alone_makes_no_report(tmp_path):
    words = ["--backend", "torch:cpu", "--case", LATE, "--report", str(tmp_path / "x")]
    done = CliRunner().invoke(conformance, words)
    assert isinstance(done.exception, InputError)
    assert "--case was given with --report" in str(done.exception)
    assert not (tmp_path / "x").exists()


def test_a_terminal_is_told_what_is_known():
    result = component(
        "unet/float32/static/late",
        Status.FAIL_MISMATCH,
        6.0,
        reason="too far",
        curve=(0.5, 3.0, None),
        log="one\ntwo\n",
    )
    assert lines_of(result) == [
        "FAIL_MISMATCH  component/unet/float32/static/late",
        "  too far",
        "  RMSE over the reference's own 6 (at most 2), 3× the limit",
        "  LPIPS 3e-6",
        "  worst at call 2 of 3 sample",
        "  error over the limit, call by call: 0.5 3 NaN",
        "  | one",
        "  | two",
    ]
