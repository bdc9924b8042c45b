"""The suite gives the reference itself no failure, whatever numbers it is asked with."""

import pytest

from perfuse_conformance.results import Status
from perfuse_conformance.runner import run_conformance


@pytest.mark.parametrize("seed", range(1, 6))
def test_no_failure_over_seeds(seed: int) -> None:
    run, _ = run_conformance("torch:cpu", level="L2", seed=seed)
    failed = [f"{r.id}: {r.status} {r.reason}" for r in run.results if not r.status.passed]
    assert not failed
    assert run.totals["executed"] == len(run.results) > 90
    assert str(run.claim) == "L2+dyn+fp16+bf16"
