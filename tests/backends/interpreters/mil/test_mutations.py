"""A saved package that is changed in one place: conformance says so, and says nothing of the unchanged."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.interpreters.mil.judged import judged
from tests.backends.interpreters.mil.programs import (
    block_of,
    constant_of,
    edited,
    operation_of,
    weights_of,
)

from perfuse import DiffusionPipeline
from perfuse.sources.manifest import sha256
from perfuse_conformance.judge.results import Status

CASE = "component/unet/float32/static/late"


@pytest.fixture(scope="module")
def exported_ddpm(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutations") / "ddpm"
    pipe = DiffusionPipeline.from_pretrained(checkpoint("ddpm"), backend="torch:cpu")
    return pipe.export(folder, to="coreml")


@pytest.fixture(scope="module")
def golden(checkpoint, exported_ddpm) -> Path:
    from perfuse_conformance.reference.record import bundle_for

    return bundle_for(str(checkpoint("ddpm")), level="L1").path


@pytest.fixture
def package(exported_ddpm: Path, tmp_path: Path) -> Iterator[Path]:
    """The UNet's package in a copy of the export."""
    folder = Path(shutil.copytree(exported_ddpm, tmp_path / "ddpm"))
    yield folder / "unet" / "model.mlpackage"


def _sealed(package: Path) -> Path:
    """The export with its manifest made right again: only conformance can know now."""
    folder = package.parent.parent
    path = folder / "perfuse.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        entry["size"] = (folder / name).stat().st_size
        entry["sha256"] = sha256(folder / name)
    path.write_text(json.dumps(manifest))
    return folder


def _one_weight(package: Path) -> None:
    """One weight of one convolution is a tenth larger."""
    with edited(package) as model:
        weight = constant_of(model, operation_of(model, "conv", 3), "weight")
    offset = weight.attributes["val"].blobFileValue.offset
    data = np.fromfile(weights_of(package), np.uint8)
    start = int(data[offset + 16 : offset + 24].view(np.uint64)[0])
    data[start : start + 4].view(np.float32)[:] *= 1.1
    data.tofile(weights_of(package))


def _weights_of_another(package: Path) -> None:
    """Two linear layers of one attention have each other's weights."""
    with edited(package) as model:
        first, second = (
            constant_of(model, operation_of(model, "linear", n), "weight").attributes["val"]
            for n in _same_shaped(model, "linear")
        )
        swapped = first.blobFileValue.offset, second.blobFileValue.offset
        second.blobFileValue.offset, first.blobFileValue.offset = swapped


def _same_shaped(model: Any, type: str) -> tuple[int, int]:
    shapes: dict[str, int] = {}
    for index, _ in enumerate(one for one in block_of(model).operations if one.type == type):
        weight = constant_of(model, operation_of(model, type, index), "weight")
        shape = str(weight.outputs[0].type)
        if shape in shapes:
            return shapes[shape], index
        shapes[shape] = index
    raise AssertionError(f"no two {type} are of one shape")


def _one_attribute(package: Path) -> None:
    """The epsilon of one group norm is a hundred times what it was."""
    with edited(package) as model:
        norm = operation_of(model, "instance_norm", 1)
        value = constant_of(model, norm, "epsilon").attributes["val"].immediateValue.tensor
        value.floats.values[0] *= 100


def _one_axis(package: Path) -> None:
    """One attention's weights are normalised over the queries."""
    with edited(package) as model:
        softmax = operation_of(model, "softmax")
        axis = constant_of(model, softmax, "axis").attributes["val"].immediateValue.tensor
        axis.ints.values[0] = -2


def _one_pad(package: Path) -> None:
    """One convolution is padded at the top alone, to the same size."""
    with edited(package) as model:
        conv = operation_of(model, "conv", 1)
        pad = constant_of(model, conv, "pad").attributes["val"].immediateValue.tensor
        assert list(pad.ints.values) == [1, 1, 1, 1]
        pad.ints.values[:] = [2, 0, 1, 1]


def _one_operation(package: Path) -> None:
    """One activation is another one."""
    with edited(package) as model:
        operation_of(model, "silu", 2).type = "tanh"


def _one_order(package: Path) -> None:
    """Sines and cosines of the timestep have changed places."""
    with edited(package) as model:
        of = {o.name: one.type for one in block_of(model).operations for o in one.outputs}
        concats = [one for one in block_of(model).operations if one.type == "concat"]
        for values in (one.inputs["values"].arguments for one in concats):
            names = [argument.name for argument in values]
            if {of.get(name) for name in names} == {"sin", "cos"}:
                for argument, name in zip(values, reversed(names), strict=True):
                    argument.name = name
                return
    raise AssertionError("no timestep is embedded")


MUTATIONS = (
    _one_weight,
    _weights_of_another,
    _one_attribute,
    _one_axis,
    _one_pad,
    _one_operation,
    _one_order,
)


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_a_package_changed_in_one_place_is_caught(mutate, package, golden, tmp_path):
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    mutate(package)
    assert any(path.read_bytes() != data for path, data in before.items())
    result = judged(CASE, _sealed(package), golden, tmp_path)
    assert (result.status, result.reason_code) == (Status.FAIL_MISMATCH, "mismatch"), result


def test_the_package_that_is_written_again_unchanged_is_not(package, golden, tmp_path):
    with edited(package):
        pass
    result = judged(CASE, _sealed(package), golden, tmp_path)
    assert result.status is Status.PASS, result
    assert (result.executed_precision, result.fallbacks) == ("float32", ())
