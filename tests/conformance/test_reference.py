"""The suite gives the reference itself no failure, whatever numbers it is asked with."""

import pytest

from perfuse_conformance.results import Status
from perfuse_conformance.runner import run_conformance

RIGHT = (Status.PASS, Status.QUALITY_WARNING)


@pytest.mark.parametrize(("seed", "level"), [(1, "L2"), *((seed, "L1") for seed in range(2, 6))])
def test_no_failure_over_seeds(seed: int, level: str) -> None:
    run, _ = run_conformance("torch:cpu", level=level, seed=seed)
    others = [f"{r.id}: {r.status} {r.reason}" for r in run.results if r.status not in RIGHT]
    assert not others
    assert run.totals["executed"] == len(run.results) > 60
    assert str(run.claim) == f"{level}+dyn+fp16+bf16"
