"""The suite gives the reference itself no failure, whatever numbers it is asked with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from perfuse import Checkpoint
from perfuse_conformance.cases.models import path_of
from perfuse_conformance.judge.results import Status
from perfuse_conformance.reference.pipeline import Float64Program
from perfuse_conformance.reference.record import bundle_for, record
from perfuse_conformance.runner.session import open_session, run_conformance

pytestmark = pytest.mark.slow

RIGHT = (Status.PASS, Status.QUALITY_WARNING)


@pytest.mark.parametrize(
    ("seed", "level", "model"),
    [
        (3, "L2", "random-ddpm"),
        pytest.param(1, "L2", None, marks=pytest.mark.exhaustive),
        pytest.param(2, "L1", None, marks=pytest.mark.exhaustive),
        *(pytest.param(n, "L2", "random-ddpm", marks=pytest.mark.exhaustive) for n in (4, 5)),
    ],
)
def test_no_failure_over_seeds(seed: int, level: str, model: str | None) -> None:
    run, _ = run_conformance("torch:cpu", model=model, level=level, seed=seed)
    others = [f"{r.id}: {r.status} {r.reason}" for r in run.results if r.status not in RIGHT]
    assert not others
    assert run.totals["executed"] == len(run.results) > 40
    assert str(run.claim) == f"{level}+dyn+fp16+bf16"


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(20))
def test_nothing_that_a_seed_draws_fails(seed: int) -> None:
    session = open_session("torch:cpu", draw_seed=seed, precisions=("float32",))
    try:
        drawn = [
            case for case in session.cases() if case.kind == "trial" or case.subject == "drawn"
        ]
        results = [session.judge(case) for case in drawn]
    finally:
        session.close()
    assert not [f"{r.status} {r.rerun}" for r in results if r.status not in RIGHT]
    assert len(results) > 60


@pytest.mark.exhaustive
def test_a_golden_bundle_holds_what_its_seed_draws(tmp_path: Path) -> None:
    record(path_of("random-ddpm"), tmp_path / "golden", seed=3)
    golden = tmp_path / "golden"
    session = open_session("torch:cpu", model="random-ddpm", golden=golden, draw_seed=9)
    try:
        drawn = [
            case for case in session.cases() if case.kind == "trial" or case.subject == "drawn"
        ]
        results = [session.judge(case) for case in drawn]
    finally:
        session.close()
    assert not [f"{r.status} {r.reason}" for r in results if r.status not in RIGHT]
    assert session.drawn_with == 3
    assert len(results) > 15


def test_the_bundle_of_a_higher_level_serves_a_lower(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFUSE_CACHE", str(tmp_path))
    model = str(checkpoint("tiny"))
    lower = bundle_for(model, level="L1")
    higher = bundle_for(model, level="L2")
    assert not lower.index["draws"]
    assert higher.index["draws"]
    assert bundle_for(model, level="L1").path == higher.path


@pytest.mark.parametrize(("kind", "alone"), [("adapter", True), ("sd1-small", False)])
def test_what_convolves_alone_may_round_as_pytorch_does(
    checkpoint: Callable[[str], Path], kind: str, alone: bool
) -> None:
    encoder = Checkpoint.open(checkpoint(kind)).component("vae_encoder")
    assert Float64Program(encoder, "cpu").rounds_alike is alone


def test_what_sums_nothing_may_round_as_pytorch_does(checkpoint: Callable[[str], Path]) -> None:
    scale = Checkpoint.open(checkpoint("unclip")).component("image_normalizer_scale")
    assert Float64Program(scale, "cpu").rounds_alike
