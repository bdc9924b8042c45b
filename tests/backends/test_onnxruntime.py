"""ONNX Runtime: what it computes, what it returns, what it refuses, and what it imports."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from perfuse.backend import Component, Request, SupportLevel, Target
from perfuse.errors import (
    ArtifactError,
    DeviceNotFoundError,
    ExecutionError,
    InputError,
    UnsupportedError,
)
from perfuse.sources.artifact import Artifact
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.store import ArtifactStore
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse_onnxruntime import providers
from perfuse_onnxruntime.backend import OnnxRuntime, _weights_size
from perfuse_onnxruntime.program import OnnxProgram

pytestmark = pytest.mark.export

Open = Callable[..., OnnxProgram]


@pytest.fixture
def artifact(exported: Callable[[str, str], Path]) -> Artifact:
    return Artifact.open(exported("sd1", "onnx"))


def prepare(component: Component, device: str | None = None, **options: str) -> OnnxProgram:
    target = Target(backend="onnxruntime", device=device, options=options)
    program = OnnxRuntime().prepare(component, target, ArtifactStore(Path("unused")))
    assert isinstance(program, OnnxProgram)
    return program


@pytest.fixture
def unet(artifact: Artifact) -> OnnxProgram:
    return prepare(artifact.component("unet"))


def unet_inputs(batch: int = 2, size: int = 8, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "sample": generator.standard_normal((batch, 4, size, 6)).astype(np.float32),
        "timestep": np.full(batch, 500.5, dtype=np.float32),
        "encoder_hidden_states": generator.standard_normal((batch, 7, 32)).astype(np.float32),
    }


def plain_component(
    folder: Path,
    *,
    inputs: Mapping[str, tuple[int, tuple[int | str, ...]]] | None = None,
    outputs: tuple[str, ...] = ("out_sample",),
) -> Component:
    """``out_sample = sample + timestep`` as another exporter would declare it."""
    inputs = inputs or {"sample": (1, ("b", "c")), "timestep": (1, ("b",))}
    nodes, time = [], "timestep"
    if inputs["timestep"][0] != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [time], ["float_time"], to=TensorProto.FLOAT))
        time = "float_time"
    if inputs["timestep"][1] != ():
        axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
        nodes.append(helper.make_node("Unsqueeze", [time, "axes"], ["column"]))
        time, initializers = "column", [axes]
    else:
        initializers = []
    first = "sample"
    if inputs["sample"][0] != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [first], ["float_sample"], to=TensorProto.FLOAT))
        first = "float_sample"
    nodes += [helper.make_node("Add", [first, time], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, 1, ("b", "c")) for name in outputs],
        initializers,
    )
    opset = [helper.make_opsetid("", 20)]
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")
    spec = ComponentSpec(
        name="unet",
        class_name="Plain",
        folder="unet",
        config={},
        signature=Signature(
            inputs=(
                TensorSpec(name="sample", dtype="float", shape=("batch", "channels")),
                TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
            ),
            outputs=(TensorSpec(name="out_sample", dtype="float", shape=("batch", "channels")),),
        ),
    )
    return Component(spec=spec, files={"onnx": folder / "model.onnx"})


SAMPLE = np.arange(6, dtype=np.float32).reshape(2, 3)


# What it computes


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_encoder", "vae_decoder"])
def test_it_agrees_with_the_torch_module(
    name: str, artifact: Artifact, checkpoint: Callable[[str], Path]
) -> None:
    import torch

    source = Checkpoint.open(checkpoint("sd1")).component(name)
    assert source.build is not None
    program, module = prepare(artifact.component(name)), source.build()
    generator = np.random.default_rng(1)
    sizes = {"batch": 3, "sequence": 9, "latent_height": 9, "latent_width": 5, "height": 6}
    inputs: dict[str, Any] = {}
    for tensor in source.signature.inputs:
        shape = tuple(int(size) for size in tensor.resolve({**sizes, "width": 14}))
        integers = tensor.dtype == "int64"
        drawn = generator.integers(0, 99, shape) if integers else generator.normal(size=shape)
        inputs[tensor.name] = drawn if integers else drawn.astype(np.float32)
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(array) for array in inputs.values()))
    got = program(**inputs)
    assert tuple(got) == source.signature.output_names
    for expected, array in zip(wanted, got.values(), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_a_checkpoint_is_exported_once_on_the_way(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    component = Checkpoint.open(checkpoint("sd1")).component("text_encoder")
    store = ArtifactStore(tmp_path)
    target = Target(backend="onnxruntime")
    ids = np.arange(10).reshape(2, 5)
    first = OnnxRuntime().prepare(component, target, store)(input_ids=ids)
    made = {folder: folder.stat().st_mtime_ns for folder, _ in store.entries()}
    second = OnnxRuntime().prepare(component, target, store)(input_ids=ids)
    assert len(made) == 1
    assert {folder: folder.stat().st_mtime_ns for folder, _ in store.entries()} == made
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_float16_takes_and_gives_float32(
    checkpoint: Callable[[str], Path], tmp_path: Path, artifact: Artifact
) -> None:
    source = Checkpoint.open(checkpoint("sd1")).component("text_encoder", precision="float16")
    program = OnnxRuntime().prepare(source, Target(backend="onnxruntime"), ArtifactStore(tmp_path))
    ids = np.arange(10).reshape(2, 5)
    halves, full = (
        program(input_ids=ids),
        prepare(artifact.component("text_encoder"))(input_ids=ids),
    )
    assert program.report().precision == "float16"
    for name, array in halves.items():
        assert array.dtype == np.float32
        noise = np.square(array - full[name]).mean() / np.square(full[name]).mean()
        assert 0 < noise < 1e-4  # 40 dB, and not simply float32


# What it returns


def test_an_output_may_be_the_next_input(unet: OnnxProgram, artifact: Artifact) -> None:
    fresh = prepare(artifact.component("unet"))
    inputs, sample = unet_inputs(), unet_inputs()["sample"]
    chained = []
    for _ in range(5):
        sample = unet(**{**inputs, "sample": sample})["out_sample"]
        chained.append(sample.copy())
    sample = inputs["sample"]
    for array in chained:
        sample = np.array(fresh(**{**inputs, "sample": sample})["out_sample"])
        np.testing.assert_array_equal(array, sample)


def test_a_result_that_is_held_keeps_its_values(unet: OnnxProgram) -> None:
    held = [unet(**unet_inputs(seed=seed))["out_sample"] for seed in range(6)]
    views = [unet(**unet_inputs(seed=seed))["out_sample"][:, :2] for seed in range(6)]
    assert len({array.ctypes.data for array in held}) == 6
    for seed in range(6):
        again = unet(**unet_inputs(seed=seed))["out_sample"]
        np.testing.assert_array_equal(held[seed], again)
        np.testing.assert_array_equal(views[seed], again[:, :2])


def test_a_result_that_is_dropped_gives_its_memory_back(unet: OnnxProgram) -> None:
    places = {unet(**unet_inputs(seed=seed))["out_sample"].ctypes.data for seed in range(20)}
    assert len(places) <= 3


def test_inputs_are_not_written_to(unet: OnnxProgram) -> None:
    inputs = unet_inputs()
    unet(**inputs)
    for name, array in unet_inputs().items():
        np.testing.assert_array_equal(inputs[name], array)


def test_an_input_that_changed_in_place_is_seen(unet: OnnxProgram) -> None:
    inputs = unet_inputs()
    first = unet(**inputs)["out_sample"]
    inputs["sample"] += 1
    second = unet(**inputs)["out_sample"]
    assert np.abs(first - second).max() > 1e-2
    expected = unet(**{**unet_inputs(), "sample": unet_inputs()["sample"] + 1})["out_sample"]
    np.testing.assert_array_equal(second, expected)


def test_every_size_gets_its_own_buffers(unet: OnnxProgram) -> None:
    for _ in range(2):
        for size in range(1, 12):
            assert unet(**unet_inputs(size=size))["out_sample"].shape == (2, 4, size, 6)


def test_what_is_not_contiguous_or_float32_is_converted(unet: OnnxProgram) -> None:
    inputs = unet_inputs()
    wanted = unet(**inputs)["out_sample"]
    flipped = np.ascontiguousarray(inputs["sample"].transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
    assert not flipped.flags.c_contiguous
    doubles = {**inputs, "timestep": inputs["timestep"].astype(np.float64), "sample": flipped}
    np.testing.assert_array_equal(unet(**doubles)["out_sample"], wanted)


# What it refuses


def test_wrong_inputs_are_named(unet: OnnxProgram) -> None:
    inputs = unet_inputs()
    without = {name: array for name, array in inputs.items() if name != "timestep"}
    with pytest.raises(InputError, match="missing: timestep"):
        unet(**without)
    with pytest.raises(InputError, match="unknown: mask"):
        unet(**without, mask=inputs["timestep"])
    with pytest.raises(InputError, match=r"sample of shape"):
        unet(**{**inputs, "sample": inputs["sample"][0]})
    with pytest.raises(InputError, match="timestep of shape"):
        unet(**{**inputs, "timestep": inputs["timestep"][:1]})
    with pytest.raises(InputError, match="sample takes float32"):
        unet(**{**inputs, "sample": inputs["sample"].astype(complex)})
    assert unet(**inputs)["out_sample"].shape == (2, 4, 8, 6)  # and is not the worse for it


def test_a_size_that_the_model_cannot_take_is_refused(artifact: Artifact) -> None:
    encoder = prepare(artifact.component("vae_encoder"))
    with pytest.raises(InputError, match="height in multiples of 2; got 7"):
        encoder(sample=np.zeros((1, 3, 7, 8), np.float32))
    text = prepare(artifact.component("text_encoder"))
    with pytest.raises(InputError, match="sequence of at most 77; got 78"):
        text(input_ids=np.zeros((1, 78), np.int64))


def test_a_file_for_one_size_says_which_and_how_to_make_another(tmp_path: Path) -> None:
    kinds = {"sample": (TensorProto.FLOAT, (2, "c")), "timestep": (TensorProto.FLOAT, (2,))}
    program = prepare(plain_component(tmp_path, inputs=kinds))
    assert program.signature.inputs[0].shape == (2, "channels")
    time = np.zeros(3, np.float32)
    with pytest.raises(InputError, match=r"for batch 2; got batch 3.*perfuse export.*--batch"):
        program(sample=np.zeros((3, 3), np.float32), timestep=time)
    np.testing.assert_array_equal(program(sample=SAMPLE, timestep=time[:2])["out_sample"], SAMPLE)


def test_a_component_with_fixed_sizes_refuses_others(artifact: Artifact) -> None:
    fixed = replace(artifact.component("unet"), static={"latent_height": 8, "latent_width": 6})
    program = prepare(fixed)
    assert program(**unet_inputs())["out_sample"].shape == (2, 4, 8, 6)
    with pytest.raises(InputError, match=r"latent_height 8.*got latent_height 9"):
        program(**unet_inputs(size=9))


def test_calling_after_close_is_an_error(unet: OnnxProgram) -> None:
    unet.close()
    with pytest.raises(ExecutionError, match="after close"):
        unet(**unet_inputs())
    with pytest.raises(ExecutionError, match="closed"):
        unet.report()


def test_what_the_engine_says_while_running_is_an_execution_error(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "sample"], ["out_sample"])],
        "gather",
        [helper.make_tensor_value_info("sample", TensorProto.INT64, ("b",))],
        [helper.make_tensor_value_info("out_sample", 1, ("b",))],
        [helper.make_tensor("table", 1, [2], [0.0, 1.0])],
    )
    opset = [helper.make_opsetid("", 20)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    signature = Signature(
        inputs=(TensorSpec(name="sample", dtype="int64", shape=("batch",)),),
        outputs=(TensorSpec(name="out_sample", dtype="float", shape=("batch",)),),
    )
    spec = ComponentSpec(
        name="table", class_name="Table", folder="table", config={}, signature=signature
    )
    program = prepare(Component(spec=spec, files={"onnx": path}))
    with pytest.raises(ExecutionError, match=r"table.*onnxruntime:cpu.*out of data bounds"):
        program(sample=np.array([7]))
    np.testing.assert_array_equal(program(sample=np.array([1]))["out_sample"], [1.0])


# Files of other exporters


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (TensorProto.FLOAT, ()),
        (TensorProto.FLOAT16, ()),
        (TensorProto.INT64, ()),
        (TensorProto.INT64, ("b",)),
        (TensorProto.INT32, ("b",)),
    ],
)
def test_the_timestep_is_made_what_the_file_declares(
    tmp_path: Path, kind: int, shape: tuple[str, ...]
) -> None:
    inputs = {"sample": (TensorProto.FLOAT16, ("b", "c")), "timestep": (kind, shape)}
    program = prepare(plain_component(tmp_path, inputs=inputs))
    got = program(sample=SAMPLE, timestep=np.full(2, 12, np.float32))["out_sample"]
    np.testing.assert_array_equal(got, SAMPLE + 12)


@pytest.mark.parametrize("shape", [(), ("b",)])
def test_a_fraction_is_never_truncated(tmp_path: Path, shape: tuple[str, ...]) -> None:
    inputs = {"sample": (TensorProto.FLOAT, ("b", "c")), "timestep": (TensorProto.INT64, shape)}
    program = prepare(plain_component(tmp_path, inputs=inputs))
    with pytest.raises(InputError, match=r"timestep is int64 in this file; got 979\.6.*truncated"):
        program(sample=SAMPLE, timestep=np.full(2, 979.6, np.float32))


def test_one_timestep_cannot_stand_for_two(tmp_path: Path) -> None:
    inputs = {"sample": (TensorProto.FLOAT, ("b", "c")), "timestep": (TensorProto.FLOAT, ())}
    program = prepare(plain_component(tmp_path, inputs=inputs))
    with pytest.raises(InputError, match="one number for the whole batch"):
        program(sample=SAMPLE, timestep=np.array([1, 2], np.float32))


def test_the_output_is_found_under_other_names(tmp_path: Path) -> None:
    program = prepare(plain_component(tmp_path, outputs=("noise_pred",)))
    got = program(sample=SAMPLE, timestep=np.ones(2, np.float32))
    assert list(got) == ["out_sample"]
    np.testing.assert_array_equal(got["out_sample"], SAMPLE + 1)
    with pytest.raises(ArtifactError, match=r"gives picture; out_sample was looked for"):
        prepare(plain_component(tmp_path / "other", outputs=("picture",)))


def test_a_file_with_other_inputs_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    component = plain_component(tmp_path)
    spec = artifact.component("unet").spec
    with pytest.raises(ArtifactError, match=r"takes sample, timestep;.*encoder_hidden_states"):
        prepare(replace(component, spec=spec))


# Damaged files


@pytest.fixture
def copied(artifact: Artifact, tmp_path: Path) -> Component:
    component = artifact.component("unet")
    folder = shutil.copytree(component.files["onnx"].parent, tmp_path / "copy")
    return replace(component, files={"onnx": folder / component.files["onnx"].name})


@pytest.mark.parametrize("part", [0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_graph_is_refused(copied: Component, part: float) -> None:
    path = copied.files["onnx"]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(ArtifactError, match=r"model\.onnx was to be loaded.*again"):
        prepare(copied)


def test_what_is_not_onnx_is_refused(copied: Component) -> None:
    copied.files["onnx"].write_bytes(b"<html>404</html>" * 99)
    with pytest.raises(ArtifactError, match=r"not an ONNX file"):
        prepare(copied)


def test_a_missing_file_is_named(copied: Component) -> None:
    copied.files["onnx"].unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx was to be loaded; it is not there"):
        prepare(copied)


def test_missing_weights_are_named(copied: Component) -> None:
    (copied.files["onnx"].parent / "model.onnx_data").unlink()
    with pytest.raises(ArtifactError, match=r"weights from model\.onnx_data, which is not beside"):
        prepare(copied)


def test_truncated_weights_are_refused(copied: Component) -> None:
    data = copied.files["onnx"].parent / "model.onnx_data"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(ArtifactError, match=r"missing, damaged"):
        prepare(copied)


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "link.bin", None])
def test_weights_outside_of_the_folder_are_refused(tmp_path: Path, location: str | None) -> None:
    secret, folder = tmp_path / "secret.bin", tmp_path / "model"
    np.ones(6, np.float32).tofile(secret)
    component = plain_component(folder)
    (folder / "sub").mkdir()
    (folder / "link.bin").symlink_to(secret)
    path = component.files["onnx"]
    model = onnx.load(path)
    tensor = model.graph.initializer.add(name="stolen", data_type=1, dims=[6])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location or str(secret))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"outside of its own folder"):
        prepare(component)


# Devices, options, precisions


def test_the_cpu_is_the_first_device() -> None:
    devices = OnnxRuntime().devices()
    assert devices[0].name == "cpu"
    assert len({device.name for device in devices}) == len(devices)
    assert not any("azure" in device.name for device in devices)


def test_providers_have_the_names_that_people_type() -> None:
    found = providers.devices(
        ["TensorrtExecutionProvider", "CUDAExecutionProvider", "NewThingExecutionProvider"]
        + ["AzureExecutionProvider", "CPUExecutionProvider"]
    )
    assert [device.name for device in found] == ["cpu", "cuda", "tensorrt", "newthing"]


def test_a_device_index_reaches_the_provider() -> None:
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert providers.resolve("cuda:1", available) == ("CUDAExecutionProvider", {"device_id": "1"})
    assert providers.resolve("CPU", available) == ("CPUExecutionProvider", {})
    for wrong in ("cuda:x", "cpu:0", "cuda:"):
        with pytest.raises(DeviceNotFoundError, match=f"onnxruntime:{wrong}"):
            providers.resolve(wrong, available)


def test_a_device_that_is_not_there_is_refused_with_its_package(artifact: Artifact) -> None:
    with pytest.raises(DeviceNotFoundError, match=r"has cpu.*rocm comes with onnxruntime-rocm"):
        prepare(artifact.component("unet"), "rocm")
    with pytest.raises(DeviceNotFoundError, match=r"onnxruntime:abacus.*has cpu"):
        prepare(artifact.component("unet"), "abacus")


def test_options_are_checked(artifact: Artifact) -> None:
    component = artifact.component("text_encoder")
    assert prepare(component, threads="2").report().details["threads"] == 2
    with pytest.raises(InputError, match=r"option speed; it has threads"):
        prepare(component, speed="high")
    with pytest.raises(InputError, match="threads=many; it takes a whole number"):
        prepare(component, threads="many")
    with pytest.raises(InputError, match="cpu_fallback=perhaps; it takes true, false"):
        prepare(component, cpu_fallback="perhaps")


def test_precisions_are_answered_for(artifact: Artifact) -> None:
    component = artifact.component("unet")
    levels = {
        precision: OnnxRuntime().supports(Request(component=component.spec, precision=precision))
        for precision in ("float32", "float16", "bfloat16")
    }
    assert levels["float32"].level is SupportLevel.FULL
    assert levels["float16"].level is SupportLevel.CONDITIONAL and levels["float16"].reason
    assert levels["bfloat16"].level is SupportLevel.UNSUPPORTED and levels["bfloat16"].reason
    with pytest.raises(UnsupportedError, match="bfloat16"):
        prepare(replace(component, precision="bfloat16"))


def test_the_report_says_what_ran(unet: OnnxProgram) -> None:
    import onnxruntime

    report = unet.report()
    assert (report.device, report.precision) == ("cpu", "float32")
    assert report.engine == f"onnxruntime {onnxruntime.__version__}"
    assert report.fallbacks == ()
    assert report.details["providers"] == ("CPUExecutionProvider",)


# Memory


def test_weights_read_in_place_give_the_same(artifact: Artifact, unet: OnnxProgram) -> None:
    in_place = prepare(artifact.component("unet"), prepack="false")
    inputs = unet_inputs()
    a, b = (program(**inputs)["out_sample"] for program in (in_place, unet))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_large_components_are_told_by_their_weights(tmp_path: Path) -> None:
    assert _weights_size(tmp_path / "model.onnx") == 0
    with open(tmp_path / "model.onnx_data", "wb") as file:
        file.truncate(3_000_000_000)  # takes no room on the disk
    assert _weights_size(tmp_path / "model.onnx") == 3_000_000_000


# What it imports


def test_an_artifact_runs_without_torch(exported: Callable[[str, str], Path]) -> None:
    code = """
import json, pathlib, sys
import numpy as np
from perfuse.sources.artifact import Artifact
from perfuse.backend import Target
from perfuse.sources.store import ArtifactStore
from perfuse_onnxruntime.backend import OnnxRuntime

component = Artifact.open(sys.argv[1]).component("text_encoder")
store = ArtifactStore(pathlib.Path("unused"))
program = OnnxRuntime().prepare(component, Target(backend="onnxruntime"), store)
program(input_ids=np.zeros((1, 4), np.int64))
heavy = ("torch", "onnx", "transformers", "onnxscript", "sympy")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported("sd1", "onnx"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []


def test_listing_it_does_not_import_the_engine() -> None:
    code = (
        "import sys, perfuse_onnxruntime.plugin as p; [m] = p.perfuse_backends(); "
        "print(m.name, m.impl, 'onnxruntime' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "onnxruntime",
        "perfuse_onnxruntime.backend:OnnxRuntime",
        "False",
        "False",
    ]
