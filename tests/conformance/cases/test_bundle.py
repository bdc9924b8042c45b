"""Golden bundles: recorded, damaged, and used where there is no torch."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.test_torch_free import PROGRAM

from perfuse.errors import InputError, PerfuseError
from perfuse.sources.opening import open_model
from perfuse_conformance.cases.bundle import Bundle, BundleError
from perfuse_conformance.judge.results import read_results
from perfuse_conformance.reference.record import record

pytestmark = pytest.mark.slow

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def golden(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "words"
    record(str(checkpoint("words")), folder)
    return folder


@pytest.fixture
def damaged(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / "damaged"))


def test_holds_inputs_truth_and_the_reference_s_own_error(golden: Path, checkpoint: Make) -> None:
    bundle = Bundle.open(golden)
    assert bundle.reference["target"] == "torch:cpu"
    assert bundle.reference["engine"].startswith("torch ")
    for probe, meta in bundle.index["probes"].items():
        for call in range(meta["calls"]):
            truth = bundle.truth(probe, call)
            assert {array.dtype for array in truth.values()} == {np.dtype(np.float64)}
            for name, array in truth.items():
                own = meta["errors"]["float32"][name][call]
                if "scale=" not in meta.get("trial", ""):  # values out of the ordinary round more
                    assert 0 < own < 1e-5 * max(np.abs(array).max(), 1)
        assert bundle.inputs(probe, 0)
    for draw, meta in bundle.index["draws"].items():
        drawn = bundle.drawn(draw)
        assert len(drawn["latents"]) == meta["steps"] == len(meta["errors"]["float32"])
        assert 0 <= drawn["images"].min() <= drawn["images"].max() <= 1
    bundle.check_model(open_model(checkpoint("words")).spec)


def test_is_not_written_over(golden: Path, checkpoint: Make) -> None:
    with pytest.raises(InputError, match="it is not empty"):
        record(str(checkpoint("words")), golden)


def test_of_another_model(golden: Path, checkpoint: Make) -> None:
    with pytest.raises(BundleError, match="recorded with another model"):
        Bundle.open(golden).check_model(open_model(checkpoint("sd2")).spec)


@pytest.mark.parametrize("way", ["missing", "truncated", "altered", "json", "newer", "alien"])
def test_damage_is_an_error_that_says_what(damaged: Path, way: str) -> None:
    index, tensors = damaged / "bundle.json", damaged / "unet.safetensors"
    data = json.loads(index.read_text("utf-8"))
    said = "is missing or not the one that was recorded"
    if way == "missing":
        tensors.unlink()
    elif way == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-64])
    elif way == "altered":
        raw = bytearray(tensors.read_bytes())
        raw[-1] ^= 1
        tensors.write_bytes(bytes(raw))
    elif way == "json":
        index.write_text(index.read_text("utf-8")[:-9], "utf-8")
        said = "is not JSON"
    elif way == "newer":
        index.write_text(json.dumps({**data, "version": 99}), "utf-8")
        said = "Update perfuse"
    else:
        index.write_text("[]", "utf-8")
        said = "holds a JSON list; an object was expected"
    with pytest.raises(BundleError, match=said):
        Bundle.open(damaged)


def test_a_path_out_of_the_bundle_is_not_followed(damaged: Path) -> None:
    index = damaged / "bundle.json"
    data = json.loads(index.read_text("utf-8"))
    data["files"]["../outside.safetensors"] = "0" * 64
    index.write_text(json.dumps(data), "utf-8")
    with pytest.raises(PerfuseError, match="outside"):
        Bundle.open(damaged)


@pytest.mark.exhaustive
def test_judges_an_export_where_there_is_no_torch(
    golden: Path, exported: Export, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    blocked = tmp_path / "blocked"
    for name in ("torch", "transformers"):  # the worker's process cannot import them either
        (blocked / name).mkdir(parents=True)
        text = f"raise ModuleNotFoundError('no {name} here', name={name!r})\n"
        (blocked / name / "__init__.py").write_text(text, "utf-8")
    report = tmp_path / "report"
    done = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, "torch,transformers", "conformance"),
            *("--backend", "onnxruntime", "--model", str(exported("words", "onnx"))),
            *("--golden", str(golden), "--level", "L2", "--report", str(report)),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(blocked)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = report.glob("*/results.json")
    run = read_results(results)
    assert str(run.claim) == "L2+dyn", run.claim.blockers
    assert run.totals["executed"] > 20
    assert (report / "index.html").is_file()
