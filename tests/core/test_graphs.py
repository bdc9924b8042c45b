"""Graphs apart from weights: one for every checkpoint of a config, and each checkpoint's own numbers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import ArtifactStore, Checkpoint, DiffusionPipeline
from perfuse.backend import Change, Component, Constant, StoredTensor, WeightMap
from perfuse.contract.original import View
from perfuse.errors import ExportError, NonFiniteError, WeightsError
from perfuse.run import apart, bound
from perfuse.run.graphs import _key

pytestmark = pytest.mark.export

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

Make = Callable[[str], Path]

GIVEN = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
BACKENDS = {"onnx": "onnxruntime:cpu", "openvino": "openvino:CPU"}
FILE = Path("unet") / "diffusion_pytorch_model.safetensors"


def draw(folder: Path, backend: str, store: ArtifactStore | None = None, **given: Any) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder, backend=backend, store=store, **given)
    return pipe(**GIVEN).images


@pytest.fixture(
    scope="module", params=["onnx", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def format(request: pytest.FixtureRequest) -> str:
    pytest.importorskip({"onnx": "onnxruntime"}.get(request.param, request.param))
    return str(request.param)


@pytest.fixture(scope="module")
def known(format: str, checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """A cache that has the graph of ``tiny``."""
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    assert bound(unet(checkpoint("tiny")), format, store) is not None
    return store


@pytest.fixture
def other(checkpoint: Make, tmp_path: Path) -> Callable[..., Path]:
    """``other(change)``: a copy of ``tiny`` with other tensors."""

    def make(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
        from safetensors.torch import load_file, save_file

        folder = Path(shutil.copytree(checkpoint("tiny"), tmp_path / "other", dirs_exist_ok=True))
        tensors = change(load_file(folder / FILE))
        partial = folder / "partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        os.replace(partial, folder / FILE)  # as a download does: never over a file that is mapped
        return folder

    return make


def unet(folder: Path, **given: Any) -> Component:
    return Checkpoint.open(folder).component("unet", **given)


def halved(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor * 0.5 for name, tensor in tensors.items()}


def size(store: ArtifactStore) -> int:
    return sum(size for _, size in store.entries())


def test_each_checkpoint_draws_its_own_picture_in_any_order(
    format: str, known: ArtifactStore, checkpoint: Make, other: Callable[..., Path]
) -> None:
    before, backend = size(known), BACKENDS[format]
    first, second = checkpoint("tiny"), other(halved)
    drawn = [draw(folder, backend, known) for folder in (first, second, first, second)]
    assert (drawn[0] == drawn[2]).all() and (drawn[1] == drawn[3]).all()
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01
    for folder, picture in zip((first, second), drawn, strict=False):
        assert np.abs(picture - draw(folder, "torch:cpu")).max() < 1e-3
    if format == "onnx":  # OpenVINO keeps there what it compiled of exports
        assert size(known) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_fewer_bits_stay_as_they_are_stored(
    format: str, known: ArtifactStore, other: Callable[..., Path], dtype: Any
) -> None:
    folder = other(lambda tensors: {name: one.to(dtype) for name, one in tensors.items()})
    found = bound(unet(folder), format, known)
    assert found is not None and len(known.entries()) <= 2
    stored = str(dtype).removeprefix("torch.")
    constants = found.weights.constants.values()
    assert {one.of(found.tensors[one.tensor]).dtype for one in constants} == {stored}
    drawn = draw(folder, BACKENDS[format], known, precision="float32")
    wanted = draw(folder, "torch:cpu", precision="float32")
    assert np.abs(drawn - wanted).max() < 1e-3


def test_tensors_stay_in_the_checkpoint_s_file(
    format: str, known: ArtifactStore, checkpoint: Make
) -> None:
    found = bound(unet(checkpoint("tiny")), format, known)
    assert found is not None
    tensors = dict(found.tensors)
    mapped = [
        (int(start, 16), int(end, 16))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(FILE))
        for start, end in [line.split()[0].split("-")]
    ]
    for one in found.weights.constants.values():
        place = one.of(tensors[one.tensor]).array.ctypes.data
        assert any(start <= place < end for start, end in mapped)


def test_what_does_not_fit_is_said_as_ever(
    format: str, known: ArtifactStore, other: Callable[..., Path]
) -> None:
    def without(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: one for name, one in tensors.items() if name != "conv_in.weight"}

    def longer(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "conv_in.bias": torch.zeros(999)}

    def broken(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "conv_in.bias": tensors["conv_in.bias"] * torch.nan}

    cases = {without: "missing: conv_in.weight", longer: "another shape: conv_in.bias"}
    for change, words in cases.items():
        with pytest.raises(WeightsError, match=words):
            bound(unet(other(change)), format, known)
    with pytest.raises(NonFiniteError):
        draw(other(broken), BACKENDS[format], known)


def test_a_file_of_another_dtype_goes_through_torch(
    known: ArtifactStore, format: str, other: Callable[..., Path]
) -> None:
    folder = other(lambda tensors: {name: one.double() for name, one in tensors.items()})
    found = bound(unet(folder), format, known)
    assert found is not None
    assert {one.dtype for one in found.tensors.values() if one.floating} == {"float32"}


def test_a_damaged_graph_is_refused(
    known: ArtifactStore, format: str, checkpoint: Make, tmp_path: Path
) -> None:
    component, store = unet(checkpoint("tiny")), ArtifactStore(tmp_path / "store")
    shutil.copytree(known.root, store.root)
    found = bound(component, format, store)
    assert found is not None
    folder = found.path.parent
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for damaged in (content[:-9], content.replace(b"conv_in", b"conv_im", 1), b""):
            if damaged != content:
                path.write_bytes(damaged)
                with pytest.raises(ExportError, match="damaged.*perfuse cache clear"):
                    bound(component, format, store)
        path.unlink()
        with pytest.raises(ExportError, match="damaged"):
            bound(component, format, store)
        path.write_bytes(content)
    assert bound(component, format, store) is not None


def test_a_file_that_is_replaced_while_it_is_mapped(
    known: ArtifactStore, format: str, other: Callable[..., Path]
) -> None:
    """What was opened keeps its weights; what is opened afterwards has the new ones."""
    folder = other(lambda tensors: tensors)
    pipe = DiffusionPipeline.from_pretrained(folder, backend=BACKENDS[format], store=known)
    before = pipe(**GIVEN).images
    other(halved)
    assert (pipe(**GIVEN).images == before).all()
    assert np.abs(draw(folder, BACKENDS[format], known) - before).max() > 0.01


def test_a_file_that_is_replaced_by_another_kind_before_it_is_read(
    known: ArtifactStore, format: str, other: Callable[..., Path]
) -> None:
    component = unet(other(lambda tensors: tensors))
    other(lambda tensors: {name: one.half() for name, one in tensors.items()})
    with pytest.raises(WeightsError, match="changed since it was opened"):
        found = bound(component, format, known)
        dict(found.tensors if found else {})


def test_a_file_that_is_replaced_while_it_is_read(
    known: ArtifactStore, format: str, other: Callable[..., Path]
) -> None:
    """Half of the weights of one checkpoint and half of another's would be a third's."""
    found = apart(unet(other(lambda tensors: tensors)), format, known)
    assert found is not None
    first, *_, last = (one.tensor for one in found.weights.constants.values())
    found.read([first])
    other(halved)
    with pytest.raises(WeightsError, match="changed since it was opened"):
        found.read([last])


def test_it_starts_without_torch(
    known: ArtifactStore, format: str, other: Callable[..., Path]
) -> None:
    code = """
import json, sys
from pathlib import Path
from perfuse import ArtifactStore, DiffusionPipeline
model, backend, store = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(model, backend=backend, store=ArtifactStore(Path(store)))
pipe(num_inference_steps=1, seed=0, output_type="np")
print(json.dumps([name for name in ("torch", "transformers", "onnx") if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, other(halved), BACKENDS[format], known.root],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []


def scaled(module: Any, factor: float) -> Any:
    with torch.no_grad():
        module.load_state_dict(
            {name: tensor * factor for name, tensor in module.state_dict().items()}, assign=True
        )
    return module


def test_a_rewriting_says_what_it_makes_of_the_graph(
    known: ArtifactStore, format: str, checkpoint: Make
) -> None:
    plain = unet(checkpoint("tiny"))
    unknown = plain.rebuilt(scaled, 0.5)
    assert bound(unknown, format, known) is None  # its weights might be in its graph
    assert bound(unknown.rebuilt(scaled, 0.5, graph=""), format, known) is None
    entries = len(known.entries())
    same = bound(plain.rebuilt(scaled, 0.5, graph=""), format, known)
    first = bound(plain, format, known)
    assert same is not None and first is not None and same.path == first.path
    assert len(known.entries()) == entries
    name = next(iter(first.weights.constants.values())).tensor
    assert (same.tensors[name].array == first.tensors[name].array * 0.5).all()


def test_configs_that_say_where_they_come_from(
    known: ArtifactStore, format: str, other: Callable[..., Path]
) -> None:
    folder = other(halved)
    config = folder / "unet" / "config.json"
    settings = json.loads(config.read_text("utf-8"))

    def key(**more: Any) -> str:
        config.write_text(json.dumps({**settings, **more}), "utf-8")
        return json.dumps(_key(unet(folder), format))

    assert key() == key(_name_or_path="somebody/something") == key(_diffusers_version="0.99.0")
    assert key() == key(sample_size=64) != key(norm_eps=1e-2)


# Tensors and what is done to them


def test_numbers_are_rounded_as_torch_rounds_them() -> None:
    values = np.random.default_rng(0).standard_normal(4096, dtype=np.float32)
    values[:5] = np.inf, -np.inf, np.nan, 3.39e38, 1e-42
    for source in (torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.from_numpy(values).to(source)
        for target in ("float32", "float16", "bfloat16"):
            cast = StoredTensor.of(tensor).cast(target)
            wanted = StoredTensor.of(tensor.to(getattr(torch, target)))
            assert cast.dtype == target
            np.testing.assert_array_equal(
                cast.cast("float32").array, wanted.cast("float32").array, strict=True
            )


def test_what_float16_cannot_hold_is_refused() -> None:
    tensor = StoredTensor.of(torch.tensor([1.0, 70000.0]))
    with pytest.raises(ExportError, match="conv.weight was to be written in float16.*65504"):
        Constant(tensor="conv.weight", dtype="float16", shape=(2,)).of(tensor)


def test_changes_of_layout() -> None:
    tensor = StoredTensor.of(torch.arange(24).reshape(2, 3, 4).float())
    changes = (Change(kind="transpose", sizes=(2, 0, 1)), Change(kind="reshape", sizes=(4, 1, 6)))
    constant = Constant(tensor="x", dtype="float32", shape=(2, 3, 4), changes=changes)
    after = constant.of(tensor).changed(changes).array
    assert after.shape == constant.final_shape == (4, 1, 6)
    assert (after == tensor.array.transpose(2, 0, 1).reshape(4, 1, 6)).all()


def test_what_the_graph_holds_itself_must_be_the_same() -> None:
    module = torch.nn.BatchNorm1d(3)
    tensors = StoredTensor.all_of(module)
    constants = {"w": Constant(tensor="weight", dtype="float32", shape=(3,))}
    floats = [name for name, one in tensors.items() if one.floating]
    weights = WeightMap.around(constants, tensors, floats)
    assert list(weights.held) == ["num_batches_tracked"]
    assert weights.fits(tensors)
    module.num_batches_tracked += 1
    assert not weights.fits(StoredTensor.all_of(module))
    assert not weights.fits({name: tensors[name] for name in floats})
    assert not weights.fits({**tensors, "weight": tensors["num_batches_tracked"]})


def test_parts_of_stored_tensors_are_the_same_with_and_without_torch() -> None:
    stored = torch.arange(24.0).reshape(6, 4)
    for view in (
        View(stored="x", shape=(6, 4, 1, 1)),
        View(stored="x", shape=(2, 4), rows=(2, 4)),
        View(stored="x", shape=(4, 6), transposed=True),
        View(stored="x", shape=(4, 3), rows=(0, 3), transposed=True),
    ):
        assert (view.of_array(stored.numpy()) == view.of(stored).numpy()).all()
