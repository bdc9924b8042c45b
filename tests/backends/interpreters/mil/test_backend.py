"""The backend: what it says of itself, what it refuses, and which switches it passes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perfuse.backend import Request, SupportLevel, Target
from perfuse.errors import DeviceNotFoundError, InputError, UnsupportedError
from perfuse.sources.opening import open_model
from perfuse.sources.store import ArtifactStore
from perfuse_interpreters.mil.backend import CoreMLInterpreter

TARGET = Target(backend="coreml-interpreter")
SIZE = {"batch": 1, "height": 8, "width": 8}


@pytest.fixture(scope="module")
def unet(checkpoint):
    return open_model(str(checkpoint("tiny"))).component("unet", static=SIZE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("store"))


def test_it_says_that_it_interprets():
    (device,) = CoreMLInterpreter().devices()
    assert device.name == "cpu"
    assert device.precisions == ("float32", "float16")
    assert "nothing runs on Core ML" in device.description


def test_a_component_is_interpreted_from_the_file_that_was_saved(unet, store):
    program = CoreMLInterpreter().prepare(unet, TARGET, store)
    report = program.report()
    assert report.engine.startswith("Core ML program, interpreted (perfuse ")
    assert (report.device, report.precision, report.fallbacks) == ("cpu", "float32", ())
    sample = np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)
    found = program(sample=sample, timestep=np.array([7.5], np.float32))["out_sample"]
    import torch

    with torch.no_grad():
        (right,) = unet.build()(torch.tensor(sample), torch.tensor([7.5]))
    np.testing.assert_allclose(found, right.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="exported for batch 1, height 8, width 8; got width 16"):
        program(sample=np.zeros((1, 3, 8, 16), np.float32), timestep=np.zeros(1, np.float32))


def test_a_file_that_rounds_more_than_it_was_asked_to_says_so(unet, store):
    halves = CoreMLInterpreter().prepare(replace(unet, precision="float16"), TARGET, store)
    assert (halves.report().precision, halves.report().fallbacks) == ("float16", ())
    (folder,) = store.root.glob("**/unet-coreml-float16*/model.mlpackage")
    claimed = replace(unet, build=None, files={"coreml": folder})
    report = CoreMLInterpreter().prepare(claimed, TARGET, store).report()
    assert report.precision == "float16"
    assert report.fallbacks == ("a program in float32 was asked for; the file computes in float16",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "bfloat16"}, "has no bfloat16"),
        ({"static": {}}, "takes the sizes that it was made for"),
        ({"static": {"batch": 1}}, "takes the sizes that it was made for"),
    ],
)
def test_what_a_core_ml_program_cannot_is_refused(changes, reason, unet, tmp_path: Path):
    component = replace(unet, **changes)
    request = Request(
        component=component.spec, precision=component.precision, static=component.static
    )
    support = CoreMLInterpreter().supports(request)
    assert support.level is SupportLevel.UNSUPPORTED
    assert reason in support.reason
    with pytest.raises(UnsupportedError, match=reason):
        CoreMLInterpreter().prepare(component, TARGET, ArtifactStore(tmp_path))


def test_a_list_of_sizes_is_as_good_as_one(unet):
    sizes = ({"height": 8, "width": 8}, {"height": 8, "width": 16})
    request = Request(component=unet.spec, precision="float32", static={"batch": 1}, sizes=sizes)
    assert CoreMLInterpreter().supports(request).level is SupportLevel.FULL


def test_another_device_is_not_there(unet, tmp_path):
    asked = Target(backend="coreml-interpreter", device="CPU_AND_NE")
    with pytest.raises(DeviceNotFoundError, match="use the backend coreml, on a Mac"):
        CoreMLInterpreter().prepare(unet, asked, ArtifactStore(tmp_path))


def test_switches_are_the_exporters_and_not_for_what_is_exported(unet, tmp_path):
    def prepare(component, **options):
        target = replace(TARGET, options=options)
        return CoreMLInterpreter().prepare(component, target, ArtifactStore(tmp_path))

    with pytest.raises(InputError, match="option palettise; it has .*palettize"):
        prepare(unet, palettise="6")
    done = replace(unet, build=None, files={"coreml": tmp_path / "model.mlpackage"})
    with pytest.raises(
        InputError, match="option palettize was given for unet, which is exported already"
    ):
        prepare(done, palettize="6")
