"""The Core ML backend with the interpreter in the place of Core ML: all but ``engine.py`` runs."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import ArtifactStore, DiffusionPipeline, Request, SupportLevel, Target
from perfuse.errors import (
    ArtifactError,
    BackendError,
    DeviceNotFoundError,
    ExecutionError,
    InputError,
    UnsupportedError,
)
from perfuse.sources.artifact import Artifact
from perfuse.sources.checkpoint import Checkpoint

pytest.importorskip("torch")
pytest.importorskip("coremltools")

from perfuse_coreml import engine
from perfuse_coreml.backend import CoreML
from perfuse_interpreters.mil.interpreter import MilPredictor

pytestmark = pytest.mark.export

Make = Callable[[str], Path]


class Mac:
    """What the stand-in was asked for."""

    def __init__(self) -> None:
        self.version = "15.5"
        self.compiled: list[Path] = []
        self.loaded: list[tuple[Path, str]] = []
        self.fails = ""

    def compile_package(self, package: Path, destination: Path) -> None:
        assert destination.name.endswith(".mlmodelc")
        self._fail("compile")
        self.compiled.append(package)
        shutil.copytree(package, destination)

    def load(self, compiled: Path, units: str) -> Callable[[dict[str, Any]], Any]:
        self._fail("load")
        self.loaded.append((compiled, units))
        predictor = MilPredictor(compiled)

        def predict(data: dict[str, Any]) -> Any:
            self._fail("predict")
            result = predictor(data)
            for name, array in data.items():  # as coremltools does for float16
                data[name] = array.astype(np.float32)
            return result

        return predict

    def _fail(self, step: str) -> None:
        if self.fails == step:
            raise RuntimeError(f"Error in {step}ing\n  the model.")


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mac]:
    """A machine on which the host lets Core ML run, and the interpreter does its work."""
    stand_in = Mac()
    monkeypatch.setattr(engine, "version", lambda: stand_in.version)
    monkeypatch.setattr(engine, "compile_package", stand_in.compile_package)
    monkeypatch.setattr(engine, "load", stand_in.load)
    monkeypatch.setattr(engine, "plan", lambda compiled, units: {"NeuralEngine": 9, "CPU": 1})
    host_module = import_module("perfuse.plugins.host")  # the name in the package is the function
    monkeypatch.setattr(host_module, "availability", lambda manifest: ("available", "", ""))
    yield stand_in


@pytest.fixture(scope="module")
def exported_tiny(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    folder = tmp_path_factory.mktemp("coreml") / "tiny"
    return pipe.export(folder, to="coreml", options={"compute_units": "CPU_AND_GPU"})


@pytest.fixture
def artifact(exported_tiny: Path, tmp_path: Path) -> Path:
    """A copy of the export that the test may damage."""
    return Path(shutil.copytree(exported_tiny, tmp_path / "tiny"))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def prepare(folder: Path, store: ArtifactStore, **target: Any) -> Any:
    component = Artifact.open(folder).component("unet")
    return CoreML().prepare(component, Target(backend="coreml", **target), store)


def draw(model: Path, **settings: Any) -> Any:
    inputs = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    inputs |= {n: settings.pop(n) for n in ("batch_size", "height", "width") if n in settings}
    pipe = DiffusionPipeline.from_pretrained(model, **settings)
    return pipe(**inputs).images


def test_devices_are_compute_units() -> None:
    devices = CoreML().devices()
    assert [one.name for one in devices] == ["ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY"]
    assert all(one.precisions == ("float32", "float16") for one in devices)


def test_what_it_supports(checkpoint: Make) -> None:
    spec = Checkpoint.open(checkpoint("tiny")).spec.denoiser
    static = {"batch": 1, "height": 8, "width": 8}

    def asked(**changes: Any) -> Any:
        request = {"component": spec, "precision": "float16", "static": static, **changes}
        return CoreML().supports(Request(**request))

    assert asked().level is SupportLevel.FULL
    assert asked(device="cpu_and_ne").level is SupportLevel.FULL
    assert asked(static={"batch": 1}, sizes=(static,)).level is SupportLevel.FULL
    on_the_engine = asked(precision="float32", device="CPU_AND_NE")
    assert on_the_engine.level is SupportLevel.CONDITIONAL
    assert "float32 runs on the CPU" in on_the_engine.reason
    assert "has no bfloat16" in asked(precision="bfloat16").reason
    assert asked(static={}).level is SupportLevel.UNSUPPORTED
    with pytest.raises(DeviceNotFoundError, match=r"'TPU' was asked for.*ALL, CPU_AND_NE"):
        asked(device="TPU")


def test_off_a_mac_the_host_says_where_it_would_run(artifact: Path) -> None:
    if sys.platform == "darwin":
        pytest.skip("this is one")
    with pytest.raises(BackendError, match=r"runs on macOS alone.*--backend coreml-interpreter"):
        DiffusionPipeline.from_pretrained(artifact)


def test_a_checkpoint_draws_what_torch_draws(
    mac: Mac, checkpoint: Make, store: ArtifactStore
) -> None:
    found = draw(checkpoint("tiny"), backend="coreml", store=store)
    expected = draw(checkpoint("tiny"), backend="torch:cpu")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert {units for _, units in mac.loaded} == {"ALL"}


def test_more_pictures_than_the_export_was_made_for(
    mac: Mac, artifact: Path, checkpoint: Make, store: ArtifactStore
) -> None:
    found = draw(artifact, backend="coreml", store=store, batch_size=3)
    expected = draw(checkpoint("tiny"), backend="torch:cpu", batch_size=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(InputError, match=r"exported for height 8, width 8, batch 1; got height 16"):
        draw(artifact, backend="coreml", store=store, height=16, width=8)


def test_compiled_once_for_a_system(mac: Mac, artifact: Path, store: ArtifactStore) -> None:
    for _ in range(2):
        prepare(artifact, store)
    assert len(mac.compiled) == 1
    mac.version = "15.6"
    prepare(artifact, store)
    assert len(mac.compiled) == 2
    weights = artifact / "unet/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    prepare(artifact, store)
    assert len(mac.compiled) == 3


def test_the_compute_units_that_were_recorded(
    mac: Mac, artifact: Path, store: ArtifactStore
) -> None:
    report = prepare(artifact, store).report()
    assert mac.loaded[-1][1] == report.device == "CPU_AND_GPU"
    assert report.precision == "float32"
    assert report.engine == "Core ML, macOS 15.5"
    assert report.fallbacks == ("1 of 10 operations are planned for the CPU",)
    assert report.details["operations"] == {"NeuralEngine": 9, "CPU": 1}
    assert prepare(artifact, store, device="cpu_only").report().fallbacks == ()
    assert mac.loaded[-1][1] == "CPU_ONLY"


def test_a_plan_that_is_not_told(
    mac: Mac, artifact: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(compiled: Path, units: str) -> dict[str, int]:
        raise ValueError("no plan")

    monkeypatch.setattr(engine, "plan", fail)
    report = prepare(artifact, store).report()
    assert report.details["operations"] == "not known: ValueError: no plan"


@pytest.mark.parametrize(
    ("step", "what"),
    [("compile", "to be compiled from"), ("load", "to be loaded"), ("predict", "to run")],
)
def test_what_core_ml_says(
    step: str, what: str, mac: Mac, artifact: Path, store: ArtifactStore
) -> None:
    mac.fails = step
    with pytest.raises(ExecutionError, match=rf"{what}.*Error in {step}ing the model\. Try"):
        program = prepare(artifact, store)
        program(sample=np.zeros((1, 3, 8, 8), np.float32), timestep=np.zeros(1, np.float32))
    assert step != "compile" or not store.entries()


def test_refused_before_anything_is_compiled(
    mac: Mac, artifact: Path, store: ArtifactStore, checkpoint: Make
) -> None:
    with pytest.raises(DeviceNotFoundError, match="'GPU' was asked for"):
        prepare(artifact, store, device="GPU")
    with pytest.raises(InputError, match="option palettize.*is exported already"):
        prepare(artifact, store, options={"palettize": "6"})
    static = {"batch": 1, "height": 8, "width": 8}
    source = Checkpoint.open(checkpoint("tiny"))
    target = Target(backend="coreml")
    with pytest.raises(UnsupportedError, match="Core ML has no bfloat16"):
        half = source.component("unet", precision="bfloat16", static=static)
        CoreML().prepare(half, target, store)
    with pytest.raises(UnsupportedError, match="takes the sizes that it was made for"):
        CoreML().prepare(source.component("unet"), target, store)
    assert not mac.compiled


def test_a_package_that_was_changed(mac: Mac, artifact: Path, store: ArtifactStore) -> None:
    component = Artifact.open(artifact).component("unet")
    package = component.files["coreml"]
    manifest = package / "Manifest.json"
    text = manifest.read_text("utf-8")
    data = json.loads(text)
    data["rootModelIdentifier"] = "another"
    manifest.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"manifest of an .mlpackage; KeyError: 'another'"):
        CoreML().prepare(component, Target(backend="coreml"), store)
    manifest.write_text(text.replace("com.apple.CoreML/model.mlmodel", "../../elsewhere"))
    with pytest.raises(ArtifactError, match="which is outside "):
        CoreML().prepare(component, Target(backend="coreml"), store)
    manifest.write_text(text)
    (package / "Data/com.apple.CoreML/weights/weight.bin").unlink()
    with pytest.raises(ArtifactError, match=r"weight\.bin, which holds weights, is missing"):
        CoreML().prepare(component, Target(backend="coreml"), store)
    with pytest.raises(ArtifactError, match=r"weight\.bin should hold .*it is missing"):
        Artifact.open(artifact)
    assert not mac.loaded
