"""The ``bridged`` profile of conformance: a right engine is granted it, wrong ones are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from perfuse.bridge.stand_in import StandIn
from perfuse_conformance.cli import conformance
from perfuse_conformance.judge.results import Run, Status
from perfuse_conformance.runner.bridged import run_bridged

pytestmark = pytest.mark.export

Make = Callable[[str], Path]


@pytest.fixture
def model(checkpoint: Make, tmp_path: Path) -> str:
    unet = diffusers.UNet2DModel.from_pretrained(checkpoint("tiny") / "unet")
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=10)
    diffusers.ConsistencyModelPipeline(unet, scheduler).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def statuses(run: Run) -> dict[str, Status]:
    return {result.id: result.status for result in run.results}


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_right_engine(engine: str, model: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    asked = ["--backend", engine, "--model", model, "--report", str(tmp_path / "report")]
    done = CliRunner().invoke(conformance, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    (run,) = json.loads(done.stdout.splitlines()[-1])["runs"]
    assert run["claim"] == {"level": "L2", "profiles": ["bridged"], "blockers": []}
    assert {result["id"] for result in run["results"]} == {
        "bridged/unet/float32/called",
        "bridged/unet/float32/changed",
        "bridged/pipeline/float32/drawn",
    }
    assert (tmp_path / "report" / "index.html").exists()


def test_a_stale_graph(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[StandIn] = []

    def look_once(self: StandIn) -> None:
        if self not in looked:
            looked.append(self)
            self._remember()

    monkeypatch.setattr(StandIn, "_look", look_once)
    run = run_bridged("onnxruntime", model=model)
    assert statuses(run)["bridged/unet/float32/changed"] is Status.FAIL_MISMATCH
    assert run.claim.level == "none"


@pytest.mark.exhaustive
def test_an_engine_that_is_wrong_from_the_second_call_on(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = StandIn._run, []

    def drifting(self: StandIn, graph: Any, call: Any) -> list[Any]:
        calls.append(call)
        return [one * (1 + 0.01 * (len(calls) > 1)) for one in right(self, graph, call)]

    monkeypatch.setattr(StandIn, "_run", drifting)
    run = run_bridged("onnxruntime", model=model)
    assert statuses(run)["bridged/unet/float32/called"] is Status.FAIL_MISMATCH
    assert run.claim.blockers[0] == "bridged/unet/float32/called"


def test_what_stays_on_torch_is_no_pass(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perfuse.bridge.stand_in.obstacle", lambda module: "it may not")
    run = run_bridged("onnxruntime", model=model)
    assert statuses(run)["bridged/unet/float32/called"] is Status.PASS_FALLBACK
    assert run.claim.level == "none"
