"""Packages that are damaged, altered or of another kind: each is an error that says what is wrong."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.interpreters.mil.programs import (
    copied,
    edited,
    normal,
    save_program,
    weights_of,
)

from perfuse.errors import ArtifactError, UnsupportedError
from perfuse_interpreters.mil.interpreter import MilPredictor
from perfuse_interpreters.mil.weights import WeightFile

_X = {"x": ((2, 16), "fp32")}


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with weights in its file: ``x @ w.T``."""
    weight = normal((24, 16))
    return save_program(
        tmp_path_factory.mktemp("linear") / "linear.mlpackage",
        _X,
        lambda mb, x: mb.linear(x=x, weight=weight, name="y"),
    )


def _manifest(package: Path, **changes: Any) -> None:
    path = package / "Manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _item(package: Path, **changes: Any) -> None:
    items = json.loads((package / "Manifest.json").read_text())["itemInfoEntries"]
    _manifest(package, itemInfoEntries={key: {**one, **changes} for key, one in items.items()})


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _patch(path: Path, at: int, format: str, *values: int) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(format, data, at, *values)
    path.write_bytes(data)


def _blob(package: Path, **fields: Any) -> None:
    """Change where the weight's constant says that it is."""
    with edited(package) as model:
        function = model.mlProgram.functions["main"]
        for operation in function.block_specializations[function.opset].operations:
            value = operation.attributes["val"]
            if value.WhichOneof("value") == "blobFileValue":
                for name, field in fields.items():
                    setattr(value.blobFileValue, name, field)


def _other_kind(package: Path) -> None:
    with edited(package) as model:
        model.neuralNetwork.SetInParent()


def _version(package: Path) -> None:
    with edited(package) as model:
        model.specificationVersion = 11


def _stored(package: Path) -> Path:
    return package / "Data/com.apple.CoreML/model.mlmodel"


DAMAGES = {
    "no package": (shutil.rmtree, r"Manifest\.json was to be read.*FileNotFoundError"),
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), r"Manifest\.json was to be read"),
    "no JSON": (lambda p: (p / "Manifest.json").write_text("{"), r"JSONDecodeError"),
    "a list": (lambda p: (p / "Manifest.json").write_text("[]"), r"TypeError"),
    "no items": (lambda p: _manifest(p, itemInfoEntries=None), r"AttributeError"),
    "no such root": (lambda p: _manifest(p, rootModelIdentifier="other"), r"KeyError: 'other'"),
    "another format": (
        lambda p: _manifest(p, fileFormatVersion="2.0.0"),
        r"format version 2\.0\.0",
    ),
    "another author": (
        lambda p: _item(p, author="acme"),
        r"a root model by acme; 1 and com\.apple",
    ),
    "climbs out": (
        lambda p: _item(p, path="../../secret"),
        r"'\.\./\.\./secret', which is outside",
    ),
    "absolute": (lambda p: _item(p, path="/etc/passwd"), r"'/etc/passwd', which is outside"),
    "no model": (lambda p: _stored(p).unlink(), r"names .*model\.mlmodel, which is not there"),
    "model cut off": (
        lambda p: _cut(_stored(p), 300),
        r"model\.mlmodel was to be read as a Core ML",
    ),
    "model of noise": (
        lambda p: _stored(p).write_bytes(bytes(range(255))),
        r"model\.mlmodel was to",
    ),
    "an empty model": (lambda p: _stored(p).write_bytes(b""), r"a model of the kind none"),
    "a neural network": (_other_kind, r"of the kind neuralNetwork; ML Programs are interpreted"),
    "a newer version": (_version, r"version 11 of Core ML's format; versions 6 to 10"),
    "no weights": (lambda p: weights_of(p).unlink(), r"weight\.bin was to be read.*No such file"),
    "empty weights": (lambda p: weights_of(p).write_bytes(b""), r"weight\.bin was to be read"),
    "a cut header": (lambda p: _cut(weights_of(p), 30), r"it holds 30 bytes"),
    "cut weights": (
        lambda p: _cut(weights_of(p), 500),
        r"lie from 128 to 1664; the file holds 500",
    ),
    "another storage": (lambda p: _patch(weights_of(p), 4, "<I", 1), r"version 1, not 2"),
    "no sentinel": (lambda p: _patch(weights_of(p), 64, "<I", 7), r"there is no blob at 64"),
    "another type": (lambda p: _patch(weights_of(p), 68, "<I", 1), r"1536 bytes of float16"),
    "no type": (lambda p: _patch(weights_of(p), 68, "<I", 99), r"1536 bytes of type 99"),
    "another size": (
        lambda p: _patch(weights_of(p), 72, "<Q", 16),
        r"16 bytes of float32; .* 384 el",
    ),
    "padding": (lambda p: _patch(weights_of(p), 88, "<Q", 3), r"1536 bytes of float32"),
    "data elsewhere": (lambda p: _patch(weights_of(p), 80, "<Q", 2**40), r"lie from 1099511627776"),
    "data astray": (lambda p: _patch(weights_of(p), 80, "<Q", 129), r"lie from 129"),
    "a blob elsewhere": (lambda p: _blob(p, offset=64 * 1000), r"looked for at 64000 of"),
    "a blob astray": (lambda p: _blob(p, offset=65), r"looked for at 65 of"),
    "weights elsewhere": (
        lambda p: _blob(p, fileName="@model_path/../../../x.bin"),
        r"'\.\./\.\./\.\./x\.bin', which is outside",
    ),
    "weights anywhere": (
        lambda p: _blob(p, fileName="/etc/passwd"),
        r"'/etc/passwd', not in the p",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_package_says_what_is_wrong(damage, linear, tmp_path):
    spoil, said = DAMAGES[damage]
    package = copied(linear, tmp_path)
    spoil(package)
    with pytest.raises((ArtifactError, UnsupportedError), match=said) as caught:
        MilPredictor(package)
    assert str(caught.value).rstrip().endswith(".")


def test_the_undamaged_package_is_read(linear, tmp_path):
    predictor = MilPredictor(copied(linear, tmp_path))
    x = normal((2, 16))
    np.testing.assert_allclose(predictor({"x": x})["y"], x @ normal((24, 16)).T, rtol=1e-4)
    assert predictor.inputs == {"x": ((2, 16), "float32")}
    assert predictor.outputs == {"y": ((2, 24), "float32")}


def test_weights_are_mapped_and_the_file_stays_as_it_is(linear, tmp_path):
    path = weights_of(copied(linear, tmp_path))
    before = path.read_bytes()
    read = WeightFile(path).read(64, "float32", (24, 16))
    np.testing.assert_array_equal(read, normal((24, 16)))
    assert isinstance(read, np.memmap)
    read[:] = 0
    assert path.read_bytes() == before


def test_the_format_is_read_without_coremltools(linear):
    """Whose import takes seconds, prints, and brings what an exported folder does not need."""
    code = (
        "import sys; from pathlib import Path; import perfuse_interpreters.mil.interpreter as i; "
        f"i.MilPredictor(Path({str(linear)!r})); "
        "sys.exit('coremltools' in sys.modules or 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
