"""OpenVINO as a backend: what it computes, what it refuses, what it says it did."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from perfuse.backend import Component, Program, Recipe, Request, SupportLevel, Target
from perfuse.errors import (
    ArtifactError,
    DeviceNotFoundError,
    ExecutionError,
    InputError,
    UnsupportedError,
)
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.store import ArtifactStore
from perfuse.spec import ComponentSpec, Dim, Signature, TensorSpec
from perfuse_exporters.openvino.exporter import OpenVinoExporter
from perfuse_openvino.backend import OpenVino

pytestmark = pytest.mark.export

Files = Callable[..., Component]


def _float(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float", shape=shape)


class Wave(torch.nn.Module):
    """A denoiser in miniature: its timestep becomes phases, its pixels go through weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = torch.nn.Parameter(torch.randn(4, 4, 3, 3, generator=generator) / 6)
        self.gate = torch.nn.Parameter(torch.randn(8, 4, generator=generator) / 3)
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(4) / 4), persistent=False)

    def forward(self, sample: Any, timestep: Any) -> Any:
        phases = timestep[:, None] * self.frequencies
        gate = torch.cat([phases.cos(), phases.sin()], dim=1) @ self.gate
        mixed = torch.nn.functional.conv2d(sample, self.mix, padding=1)
        return (mixed + gate[:, :, None, None],)


SPEC = ComponentSpec(
    name="wave",
    class_name="Wave",
    folder="wave",
    config={},
    signature=Signature(
        inputs=(
            _float("sample", "batch", 4, "latent_height", "latent_width"),
            TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
        ),
        outputs=(_float("out_sample", "batch", 4, "latent_height", "latent_width"),),
    ),
    dims={"latent_height": Dim(multiple=2), "latent_width": Dim(maximum=256)},
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """``files(precision="float16")``: the component exported to files, made once."""
    made: dict[str, Component] = {}

    def make(**fields: Any) -> Component:
        key = repr(fields)
        if key not in made:
            component = Component(spec=SPEC, build=Wave, **fields)
            path = OpenVinoExporter().export(component, tmp_path_factory.mktemp("wave"))
            made[key] = replace(component, build=None, files={"openvino": path})
        return made[key]

    return make


def prepare(
    component: Component, tmp_path: Path, device: str | None = "CPU", **options: str
) -> Program:
    target = Target(backend="openvino", device=device, options={"threads": "1", **options})
    return OpenVino().prepare(component, target, ArtifactStore(tmp_path / "artifacts"))


def copied(component: Component, folder: Path) -> Component:
    """The component in files of the test's own."""
    shutil.copytree(component.files["openvino"].parent, folder)
    return replace(component, files={"openvino": folder / component.files["openvino"].name})


def wave_inputs(batch: int = 2, height: int = 6, width: int = 5, step: float = 12.9) -> Any:
    sample = np.random.default_rng(0).standard_normal((batch, 4, height, width))
    return {
        "sample": sample.astype(np.float32),
        "timestep": np.full(batch, step, np.float32),
    }


def reference(inputs: Mapping[str, Any]) -> Any:
    with torch.no_grad():
        return Wave()(*(torch.from_numpy(array) for array in inputs.values()))[0].numpy()


def assert_close(got: Any, want: Any, *, relative: float = 2e-6) -> None:
    # A few tens of float32 additions, each rounding by 6e-8 of the value.
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= relative * np.abs(want).max()


# What it computes


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 2, 1), (2, 70, 33)])
def test_it_computes_what_torch_computes(
    batch: int, height: int, width: int, files: Files, tmp_path: Path
) -> None:
    program = prepare(files(), tmp_path)
    for step in (0.0, 12.9, 999.612):
        inputs = wave_inputs(batch, height, width, step)
        assert_close(program(**inputs)["out_sample"], reference(inputs), relative=1e-5)


def test_a_checkpoint_is_exported_on_the_way_and_once(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    component = Checkpoint.open(checkpoint("sd1")).component("text_encoder")
    ids = np.arange(10, dtype=np.int64).reshape(2, 5)
    first = prepare(component, tmp_path)(input_ids=ids)
    folders = [p for p in (tmp_path / "artifacts").glob("text_encoder-openvino-*") if p.is_dir()]
    assert len(folders) == 1
    written = (folders[0] / "openvino_model.xml").stat().st_mtime_ns
    second = prepare(component, tmp_path)(input_ids=ids)
    assert (folders[0] / "openvino_model.xml").stat().st_mtime_ns == written
    assert component.build is not None
    with torch.no_grad():
        want = component.build()(torch.from_numpy(ids))
    assert list(first) == list(component.signature.output_names)
    for got, again, tensor in zip(first.values(), second.values(), want, strict=True):
        np.testing.assert_array_equal(got, again)
        assert_close(got, tensor.numpy(), relative=1e-5)


def test_inputs_of_other_kinds_are_cast_at_the_border(files: Files, tmp_path: Path) -> None:
    program = prepare(files(), tmp_path)
    inputs = wave_inputs()
    want = program(**inputs)["out_sample"]
    turned = {**inputs, "sample": np.asfortranarray(inputs["sample"])}
    double = {name: array.astype(np.float64) for name, array in inputs.items()}
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    for other in (turned, double, tensors):
        np.testing.assert_array_equal(program(**other)["out_sample"], want)


def test_an_output_can_be_the_next_input_and_is_never_written_to_again(
    files: Files, tmp_path: Path
) -> None:
    program = prepare(files(), tmp_path)
    inputs = wave_inputs()
    given = {name: array.copy() for name, array in inputs.items()}
    first = program(**inputs)["out_sample"]
    kept = first.copy()
    second = program(sample=first, timestep=inputs["timestep"])["out_sample"]
    assert_close(second, reference({**inputs, "sample": kept}), relative=1e-5)
    np.testing.assert_array_equal(first, kept)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, given[name])


# What it refuses


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sample": np.zeros((2, 3, 6, 5), np.float32)}, r"sample of shape .*got \(2, 3, 6, 5\)"),
        ({"sample": np.zeros((2, 4, 6), np.float32)}, r"got \(2, 4, 6\)"),
        ({"timestep": np.zeros(3, np.float32)}, r"batch=2.*got \(3,\)"),
        ({"sample": np.zeros((2, 4, 5, 5), np.float32)}, "multiples of 2"),
        ({"sample": np.zeros((2, 4, 6, 300), np.float32)}, "at most 256"),
        ({"noise": np.zeros(1, np.float32)}, "unknown: noise"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    change: Any, said: str, files: Files, tmp_path: Path
) -> None:
    program = prepare(files(), tmp_path)
    inputs = wave_inputs()
    with pytest.raises(InputError, match=said):
        program(**{**inputs, **change})
    assert_close(program(**inputs)["out_sample"], reference(inputs), relative=1e-5)


def test_a_static_file_says_its_size_and_how_to_make_another(files: Files, tmp_path: Path) -> None:
    static = {"batch": 2, "latent_height": 6, "latent_width": 5}
    program = prepare(files(static=static), tmp_path)
    assert program.signature.inputs[0].shape == (2, 4, 6, 5)
    inputs = wave_inputs()
    assert_close(program(**inputs)["out_sample"], reference(inputs), relative=1e-5)
    with pytest.raises(InputError, match=r"exported for .*width 5.*got .*width 8.*perfuse export"):
        program(**wave_inputs(width=8))


@pytest.mark.parametrize("device", ["TPU", "GPU.7", "AUTO:CPU,TPU"])
def test_an_unknown_device_is_refused_with_those_that_are_there(
    device: str, files: Files, tmp_path: Path
) -> None:
    with pytest.raises(DeviceNotFoundError, match=rf"'{device}'.*lists .*CPU"):
        prepare(files(), tmp_path, device)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compile": "true"}, "cache, threads"),
        ({"threads": "x"}, "=x; it takes"),
        ({"cache": "no"}, "=no; it takes"),
    ],
)
def test_unknown_options_are_refused(
    options: dict[str, str], said: str, files: Files, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        prepare(files(), tmp_path, **options)


def test_a_closed_program_says_so(files: Files, tmp_path: Path) -> None:
    program = prepare(files(), tmp_path)
    program.close()
    with pytest.raises(ExecutionError, match="closed"):
        program(**wave_inputs())


# Files


def _cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_named(
    suffix: str, share: float, files: Files, tmp_path: Path
) -> None:
    component = copied(files(), tmp_path / "copy")
    prepare(component, tmp_path)  # a compiled model in the cache must not hide it
    _cut(component.files["openvino"].with_suffix(suffix), share)
    with pytest.raises(ArtifactError, match=rf"openvino_model\{suffix} is cut off"):
        prepare(component, tmp_path)


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_missing_file_is_named(suffix: str, files: Files, tmp_path: Path) -> None:
    component = copied(files(), tmp_path / "copy")
    component.files["openvino"].with_suffix(suffix).unlink()
    with pytest.raises(ArtifactError, match=rf"openvino_model\{suffix}.*No such file"):
        prepare(component, tmp_path)


def test_a_file_that_is_not_a_model_is_refused(files: Files, tmp_path: Path) -> None:
    component = copied(files(), tmp_path / "copy")
    component.files["openvino"].write_text("<net><layers><layer></net>")
    with pytest.raises(ArtifactError, match=r"openvino_model\.xml cannot be read"):
        prepare(component, tmp_path)


def test_a_file_of_another_component_is_refused(files: Files, tmp_path: Path) -> None:
    signature = replace(SPEC.signature, inputs=(*SPEC.signature.inputs, _float("more", "batch")))
    component = replace(files(), spec=replace(SPEC, signature=signature))
    with pytest.raises(ArtifactError, match=r"sample, timestep.*more"):
        prepare(component, tmp_path)


# Files of other tools


def foreign(tmp_path: Path, *, shape: list[int], dtype: str) -> Component:
    """As Optimum's are: a timestep of another type or rank, and names of its own."""
    from openvino import opset13 as ops

    sample = ops.parameter([-1, 4, -1, -1], np.float32, name="latents")
    timestep = ops.parameter(shape, np.dtype(dtype), name="t")
    as_float = ops.convert(timestep, "f32")
    spread = ops.reshape(as_float, np.array([-1, 1, 1, 1]), special_zero=False)
    model = openvino.Model([ops.add(sample, spread)], [sample, timestep], "foreign")
    model.inputs[0].get_tensor().set_names({"latents"})
    model.inputs[1].get_tensor().set_names({"t"})
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "openvino_model.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return Component(spec=SPEC, files={"openvino": path})


@pytest.mark.parametrize("shape", [[-1], []])
def test_an_integer_timestep_takes_whole_numbers_and_refuses_fractions(
    shape: list[int], tmp_path: Path
) -> None:
    program = prepare(foreign(tmp_path / "f", shape=shape, dtype="int64"), tmp_path)
    inputs = wave_inputs(step=981.0)
    got = program(**inputs)["out_sample"]
    np.testing.assert_array_equal(got, inputs["sample"] + np.float32(981))
    with pytest.raises(InputError, match=r"timestep 979\.6.*cut the fraction off"):
        program(**wave_inputs(step=979.612))


def test_a_timestep_of_rank_zero_is_one_for_the_batch(tmp_path: Path) -> None:
    program = prepare(foreign(tmp_path / "f", shape=[], dtype="float32"), tmp_path)
    inputs = wave_inputs(step=979.612)
    want = inputs["sample"] + np.float32(979.612)
    np.testing.assert_array_equal(program(**inputs)["out_sample"], want)
    inputs["timestep"] = np.array([1.0, 2.0], np.float32)
    with pytest.raises(InputError, match="one for the whole batch"):
        program(**inputs)


def test_sizes_that_a_foreign_file_fixes_are_found(tmp_path: Path) -> None:
    component = foreign(tmp_path / "f", shape=[-1], dtype="float32")
    path = component.files["openvino"]
    model = openvino.Core().read_model(str(path))
    model.reshape({"latents": [2, 4, 6, 5], "t": [2]})
    fixed = tmp_path / "fixed" / path.name
    fixed.parent.mkdir()
    openvino.save_model(model, fixed, compress_to_fp16=False)
    program = prepare(replace(component, files={"openvino": fixed}), tmp_path)
    assert program.signature.inputs[0].shape == (2, 4, 6, 5)
    with pytest.raises(InputError, match=r"exported for .*batch 2.*got batch 1"):
        program(**wave_inputs(batch=1))


# Precisions and devices


def native(precision: str) -> bool:
    return precision in OpenVino().devices()[0].precisions


def request(precision: str, device: str | None = "CPU", **static: int) -> Request:
    return Request(component=SPEC, precision=precision, device=device, static=static)


def test_devices_are_those_of_the_runtime_and_auto() -> None:
    devices = OpenVino().devices()
    assert [device.name for device in devices] == [*openvino.Core().available_devices, "AUTO"]
    assert all(device.description and "float32" in device.precisions for device in devices)


@pytest.mark.parametrize("device", [None, "cpu", "CPU", "auto", "AUTO:CPU", "HETERO:CPU"])
def test_a_device_is_found_however_it_is_written(
    device: str | None, files: Files, tmp_path: Path
) -> None:
    program = prepare(files(), tmp_path, device)
    assert program.report().device == "CPU"
    assert program.report().precision == "float32"
    inputs = wave_inputs()
    assert_close(program(**inputs)["out_sample"], reference(inputs), relative=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_report_is_what_the_engine_says(precision: str, files: Files, tmp_path: Path) -> None:
    report = prepare(files(precision=precision), tmp_path).report()
    assert report.precision == (precision if native(precision) else "float32")
    assert bool(report.fallbacks) is not native(precision)
    assert report.details["weights"] == precision
    assert report.details["threads"] == 1
    assert openvino.get_version() in report.engine
    support = OpenVino().supports(request(precision))
    assert support.level is (SupportLevel.FULL if native(precision) else SupportLevel.CONDITIONAL)
    assert native(precision) or "float32" in support.reason


def test_a_precision_that_openvino_lacks_is_unsupported(files: Files, tmp_path: Path) -> None:
    assert OpenVino().supports(request("float64")).level is SupportLevel.UNSUPPORTED
    with pytest.raises(UnsupportedError, match="float64"):
        prepare(replace(files(), precision="float64"), tmp_path)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_keeps_the_phase_of_a_fractional_timestep(
    precision: str, files: Files, tmp_path: Path
) -> None:
    program = prepare(files(precision=precision), tmp_path)
    inputs = wave_inputs(step=999.3)
    want = reference(inputs)
    # Half precision rounds by 4e-3 and less; a timestep rounded to 1000 is 9e-2 off.
    assert_close(program(**inputs)["out_sample"], want, relative=2e-2)
    rounded = reference({**inputs, "timestep": np.full(2, 1000, np.float32)})
    assert np.abs(rounded - want).max() > 8e-2 * np.abs(want).max()


# The cache of compiled models


def blobs(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "artifacts" / "openvino-compiled").glob("*.blob"))


def test_a_second_start_uses_what_the_first_compiled(files: Files, tmp_path: Path) -> None:
    inputs = wave_inputs()
    first = prepare(files(), tmp_path)
    want = first(**inputs)["out_sample"]
    assert first.report().details["from_cache"] is False
    assert len(blobs(tmp_path)) == 1
    second = prepare(files(), tmp_path)
    assert second.report().details["from_cache"] is True
    np.testing.assert_array_equal(second(**inputs)["out_sample"], want)
    assert prepare(files(), tmp_path, cache="false").report().details["from_cache"] is False


class Shortened(Wave):
    """Leaves out the first of its channels, to the end, however far that is."""

    def forward(self, sample: Any, timestep: Any) -> Any:
        return (torch.cat([sample, sample], dim=1)[:, 4:] + timestep[:, None, None, None],)


def test_the_end_of_a_slice_comes_out_of_the_cache_as_it_was(tmp_path: Path) -> None:
    """The largest number of 64 bits says "to the end", and OpenVINO's cache makes it -1."""
    component = Component(spec=SPEC, build=Shortened)
    path = OpenVinoExporter().export(component, tmp_path)
    exported = replace(component, build=None, files={"openvino": path})
    inputs = wave_inputs()
    want = inputs["sample"] + inputs["timestep"][0]
    for times in range(2):
        program = prepare(exported, tmp_path)
        assert program.report().details["from_cache"] is bool(times)
        np.testing.assert_array_equal(program(**inputs)["out_sample"], want)


def test_another_tool_s_slice_is_not_kept_in_the_cache(tmp_path: Path) -> None:
    from openvino import opset13 as ops

    sample, timestep = ops.parameter([-1, 4, -1, -1], name="a"), ops.parameter([-1], name="t")
    end = [np.array([number]) for number in (4, 2**63 - 1, 1, 1)]
    whole = ops.slice(ops.concat([sample, sample], 1), *end)
    model = openvino.Model([whole], [sample, timestep], "foreign")
    openvino.save_model(model, tmp_path / "openvino_model.xml", compress_to_fp16=False)
    component = Component(spec=SPEC, files={"openvino": tmp_path / "openvino_model.xml"})
    for _ in range(2):
        program = prepare(component, tmp_path)
        assert program.report().details["from_cache"] is False
        np.testing.assert_array_equal(
            program(**wave_inputs())["out_sample"], wave_inputs()["sample"]
        )


@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_a_damaged_cache_is_made_anew(damage: str, files: Files, tmp_path: Path) -> None:
    prepare(files(), tmp_path).close()
    (blob,) = blobs(tmp_path)
    data = blob.read_bytes()
    broken = {"empty": b"", "cut": data[: len(data) // 2], "noise": data[:300] + os.urandom(5000)}
    blob.chmod(0o644)
    blob.write_bytes(broken[damage])
    inputs = wave_inputs()
    program = prepare(files(), tmp_path)
    assert_close(program(**inputs)["out_sample"], reference(inputs), relative=1e-5)


def test_a_cache_that_cannot_be_written_stops_nothing(files: Files, tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file where the folder should be")
    inputs = wave_inputs()
    program = prepare(files(), tmp_path)
    assert_close(program(**inputs)["out_sample"], reference(inputs), relative=1e-5)


@dataclass(frozen=True)
class Foreign(Recipe):
    """What another library's code was captured as."""

    @property
    def foreign(self) -> bool:
        return True

    def __call__(self) -> Any:
        return Wave()


def tried(tmp_path: Path) -> list[str]:
    """How the processes ended in which graphs were compiled first."""
    files = (tmp_path / "artifacts" / "openvino-tried").glob("*.json")
    return [json.loads(file.read_text("utf-8"))["ended"] for file in files]


def test_others_graphs_are_compiled_in_a_process_of_their_own_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    component, inputs = Component(spec=SPEC, build=Foreign()), wave_inputs()
    program = prepare(component, tmp_path)
    assert_close(program(**inputs)["out_sample"], reference(inputs), relative=1e-5)
    assert program.report().details["from_cache"] is True  # what that process compiled
    assert tried(tmp_path) == [""]
    monkeypatch.setattr(subprocess, "run", None)  # none is started again
    prepare(component, tmp_path)


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("print('begun', flush=True); import ctypes; ctypes.string_at(0)", ["SIGSEGV"]),
        ("print('begun', flush=True); import os; os.kill(os.getpid(), 9)", []),
        ("raise SystemExit(3)", None),
    ],
    ids=["dies", "killed", "never begun"],
)
def test_a_graph_that_ends_the_process_is_refused(
    code: str, kept: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, started = subprocess.run, []

    def instead(command: list[str], **given: Any) -> Any:
        started.append(command)
        return run([sys.executable, "-c", code], **given)

    monkeypatch.setattr(subprocess, "run", instead)
    component = Component(spec=SPEC, build=Foreign())
    if kept is None:  # no verdict: it is compiled here
        inputs = wave_inputs()
        found = prepare(component, tmp_path)(**inputs)["out_sample"]
        assert_close(found, reference(inputs), relative=1e-5)
        assert tried(tmp_path) == []
        return
    for _ in range(2):
        with pytest.raises(ExecutionError, match=r"wave ends the process on openvino:CPU \(SIG"):
            prepare(component, tmp_path)
    assert tried(tmp_path) == kept
    assert len(started) == 2 - len(kept)


def test_the_artifact_is_not_written_to(files: Files, tmp_path: Path) -> None:
    component = copied(files(), tmp_path / "copy")
    prepare(component, tmp_path)(**wave_inputs())
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {"openvino_model.xml", "openvino_model.bin"}


def test_files_run_without_torch(files: Files, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from perfuse.backend import Component, Target
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse.sources.store import ArtifactStore
from perfuse_openvino.backend import OpenVino

def tensor(name, dtype, *shape):
    return TensorSpec(name=name, dtype=dtype, shape=shape)

signature = Signature(
    inputs=(
        tensor("sample", "float", "b", 4, "h", "w"), tensor("timestep", "float32", "b"),
    ),
    outputs=(tensor("out_sample", "float", "b", 4, "h", "w"),),
)
spec = ComponentSpec(name="wave", class_name="W", folder="w", config={}, signature=signature)
component = Component(spec=spec, files={"openvino": Path(sys.argv[1])})
store = ArtifactStore(Path(sys.argv[2]))
program = OpenVino().prepare(component, Target(backend="openvino"), store)
out = program(sample=np.ones((1, 4, 8, 8), np.float32), timestep=np.ones(1, np.float32))
assert out["out_sample"].shape == (1, 4, 8, 8)
heavy = {"torch", "transformers", "onnx", "onnxruntime", "openvino_telemetry"} & set(sys.modules)
assert not heavy, heavy
"""
    path = str(files().files["openvino"])
    subprocess.run([sys.executable, "-c", code, path, str(tmp_path)], check=True)
