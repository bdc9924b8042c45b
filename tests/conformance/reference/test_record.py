"""The suite gives the reference itself no failure, whatever numbers it is asked with."""

import pytest

from perfuse_conformance.judge.results import Status
from perfuse_conformance.runner.session import run_conformance

RIGHT = (Status.PASS, Status.QUALITY_WARNING)


@pytest.mark.parametrize(
    ("seed", "level", "model"),
    [(1, "L2", None), (2, "L1", None), *((seed, "L2", "random-ddpm") for seed in (3, 4, 5))],
)
def test_no_failure_over_seeds(seed: int, level: str, model: str | None) -> None:
    run, _ = run_conformance("torch:cpu", model=model, level=level, seed=seed)
    others = [f"{r.id}: {r.status} {r.reason}" for r in run.results if r.status not in RIGHT]
    assert not others
    assert run.totals["executed"] == len(run.results) > 40
    assert str(run.claim) == f"{level}+dyn+fp16+bf16"
