"""The ONNX that is written: its names, sizes and weights, and the numbers that it computes."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from perfuse.backend import Component
from perfuse.errors import ExportError
from perfuse.sources.artifact import Artifact
from perfuse.sources.checkpoint import Checkpoint
from perfuse.spec import Signature, TensorSpec
from perfuse_exporters.onnx.exporter import OnnxExporter

pytestmark = pytest.mark.export

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
Exported = tuple[Component, Path]
Make = Callable[..., Exported]

NAMES = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
# Sizes on both sides of what the graph was captured at: odd, oblong, of one pixel, and large.
SIZES = {
    "unet": (
        {"batch": 1, "latent_height": 8, "latent_width": 8, "sequence": 77},
        {"batch": 3, "latent_height": 9, "latent_width": 13, "sequence": 5},
        {"batch": 2, "latent_height": 3, "latent_width": 1, "sequence": 1},
        {"batch": 2, "latent_height": 66, "latent_width": 70, "sequence": 8},
    ),
    "vae_encoder": (
        {"batch": 1, "height": 16, "width": 16},
        {"batch": 3, "height": 2, "width": 34},
    ),
    "vae_decoder": (
        {"batch": 1, "latent_height": 8, "latent_width": 8},
        {"batch": 3, "latent_height": 1, "latent_width": 13},
    ),
    "text_encoder": ({"batch": 1, "sequence": 77}, {"batch": 3, "sequence": 1}),
}


@pytest.fixture(scope="module")
def make(
    checkpoint: Callable[[str], Path],
    exported: Callable[[str, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Make:
    """``make("unet", precision="float16")``: a component and its file, made once."""
    made: dict[str, Exported] = {}

    def export(name: str, **options: Any) -> Exported:
        key = json.dumps([name, options], sort_keys=True)
        if key not in made:
            component = Checkpoint.open(checkpoint("sd1")).component(name, **options)
            if options:
                path = OnnxExporter().export(component, tmp_path_factory.mktemp(name))
            else:
                path = Artifact.open(exported("sd1", "onnx")).component(name).files["onnx"]
            made[key] = component, path
        return made[key]

    return export


def inputs_of(component: Component, dims: Mapping[str, int], seed: int = 0) -> Arrays:
    generator = np.random.default_rng(seed)
    arrays: Arrays = {}
    for tensor in component.spec.signature.inputs:
        shape = tuple(int(size) for size in tensor.resolve(dims))
        if tensor.dtype == "int64":
            arrays[tensor.name] = generator.integers(0, 500, shape)
        elif tensor.name == "timestep":
            arrays[tensor.name] = generator.uniform(0, 999, shape).astype(np.float32)
        else:
            arrays[tensor.name] = generator.standard_normal(shape).astype(np.float32)
    return arrays


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, inputs: Arrays) -> list[Any]:
    loaded = session(path)
    types = {node.name: node.type for node in loaded.get_inputs()}
    half = {name for name, type in types.items() if type == "tensor(float16)"}
    feed = {n: a.astype(np.float16) if n in half else a for n, a in inputs.items()}
    return [array.astype(np.float32) for array in loaded.run(None, feed)]


def reference(component: Component, inputs: Arrays) -> list[Any]:
    """The torch module in float32, whatever the component's precision."""
    assert component.build is not None
    module = component.build().float()
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(array) for array in inputs.values()))
    return [tensor.numpy() for tensor in outputs]


def decibels(wanted: Any, got: Any) -> float:
    return float(10 * np.log10(np.square(wanted).mean() / np.square(wanted - got).mean()))


def graph_of(path: Path) -> Any:
    return onnx.load(path, load_external_data=False).graph


def faces(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(
            dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim
        )
        for value in values
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_the_module_computes_at_every_size(make: Make, name: str) -> None:
    component, path = make(name)
    for dims in SIZES[name]:
        inputs = inputs_of(component, dims)
        wanted = reference(component, inputs)
        for expected, got in zip(wanted, run(path, inputs), strict=True):
            assert got.shape == expected.shape
            # Two orders of summation in float32: a millionth of the largest value, with room.
            assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max(), dims


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_valid_and_has_the_names_and_dimensions_of_the_signature(
    make: Make, name: str
) -> None:
    component, path = make(name)
    onnx.checker.check_model(str(path), full_check=True)
    graph, signature = graph_of(path), component.signature
    assert faces(graph.input) == {t.name: t.shape for t in signature.inputs}
    assert list(faces(graph.input)) == list(signature.input_names)
    assert faces(graph.output) == {t.name: t.shape for t in signature.outputs}
    assert list(faces(graph.output)) == list(signature.output_names)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_over_in_the_graph(make: Make, name: str) -> None:
    _, path = make(name)
    model = onnx.load(path, load_external_data=False)
    used = {name for node in model.graph.node for name in node.input}
    assert {i.name for i in model.graph.initializer} <= used
    called = {node.op_type for node in model.graph.node if node.domain}
    assert {function.name for function in model.functions} == called <= {"MultiHeadAttention"}
    assert {o.domain for o in model.opset_import} <= {"", "com.microsoft"}
    assert {node.op_type for node in model.graph.node}.isdisjoint({"If", "Loop", "Constant", "Exp"})
    wide = {onnx.TensorProto.DOUBLE, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
    assert {i.data_type for i in model.graph.initializer}.isdisjoint(wide)
    casts = [
        attribute.i for n in model.graph.node if n.op_type == "Cast" for attribute in n.attribute
    ]
    assert wide.isdisjoint(casts)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_every_weight_of_a_larger_model_is_beside_the_graph(make: Make) -> None:
    component, path = make("unet")
    assert component.build is not None
    parameters = dict(component.build().named_parameters())
    initializers = {i.name: i for i in graph_of(path).initializer}
    there = sorted(file.name for file in path.parent.iterdir())
    assert there == ["model.onnx", "model.onnx_data", "weights.json"]
    held = 0
    for name, parameter in parameters.items():
        stored = [i for key, i in initializers.items() if key == name or key.startswith(f"{name}.")]
        assert stored, name
        assert all(i.data_location == onnx.TensorProto.EXTERNAL for i in stored), name
        entries = {entry.key: entry.value for entry in stored[0].external_data}
        assert entries["location"] == "model.onnx_data"
        held += parameter.nbytes
        if parameter.nbytes >= 4096:
            assert int(entries["offset"]) % 4096 == 0
    assert held <= (path.parent / "model.onnx_data").stat().st_size < 1.5 * held


def test_a_small_model_is_one_file(make: Make) -> None:
    _, path = make("text_encoder")
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "weights.json"]


@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_float16_has_float16_borders_and_keeps_40_decibels(make: Make, name: str) -> None:
    component, path = make(name, precision="float16")
    types = {v.name: v.type.tensor_type.elem_type for v in graph_of(path).input}
    for tensor in component.signature.inputs:
        wanted = {"float": onnx.TensorProto.FLOAT16, "float32": onnx.TensorProto.FLOAT}
        assert types[tensor.name] == wanted.get(tensor.dtype, onnx.TensorProto.INT64)
    for dims in SIZES[name][:2]:
        inputs = inputs_of(component, dims)
        wanted_arrays = reference(make(name)[0], inputs)
        for expected, got in zip(wanted_arrays, run(path, inputs), strict=True):
            # Ten bits of mantissa give 66 dB for one rounding; 40 leave a factor of 20 in error.
            assert decibels(expected, got) >= 40


def test_float16_weights_are_half_the_size(make: Make) -> None:
    sizes = [
        (make("unet", **options)[1].parent / "model.onnx_data").stat().st_size
        for options in ({}, {"precision": "float16"})
    ]
    assert 0.48 < sizes[1] / sizes[0] < 0.56


def test_float16_sinusoids_tell_close_timesteps_apart(make: Make) -> None:
    component, path = make("unet", precision="float16")
    inputs = inputs_of(component, SIZES["unet"][0])
    at = {t: run(path, {**inputs, "timestep": np.array([t], np.float32)})[0] for t in (979, 979.4)}
    # In float16 both timesteps would be 979.5.
    assert decibels(at[979], at[979.4]) < 60


def test_fractional_timesteps_keep_their_fraction(make: Make) -> None:
    component, path = make("unet")
    inputs = inputs_of(component, SIZES["unet"][0])
    wanted = {}
    for timestep in (979.0, 979.612, 980.0):
        inputs["timestep"] = np.array([timestep], np.float32)
        wanted[timestep] = reference(component, inputs)[0]
        (got,) = run(path, inputs)
        np.testing.assert_allclose(got, wanted[timestep], atol=1e-4)
    assert np.abs(wanted[979.612] - wanted[979.0]).max() > 1e-3


def test_fixed_dimensions_are_in_the_file(make: Make) -> None:
    static = {"batch": 2, "latent_height": 8, "latent_width": 6}
    component, path = make("vae_decoder", static=static)
    graph = graph_of(path)
    assert faces(graph.input) == {"latent_sample": (2, 4, 8, 6)}
    assert "Shape" not in {node.op_type for node in graph.node}
    inputs = inputs_of(component, static)
    np.testing.assert_allclose(run(path, inputs)[0], reference(component, inputs)[0], atol=1e-4)
    with pytest.raises(Exception, match="(?i)invalid dimensions"):
        run(path, inputs_of(component, {**static, "latent_width": 8}))


def test_the_users_module_is_not_touched_and_nothing_is_printed(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    component, _ = make("text_encoder")
    assert component.build is not None
    module = component.build()
    before = {name: (id(p), p.clone()) for name, p in module.named_parameters()}
    own = replace(component, build=lambda: module, precision="float16", fingerprint=None)
    capfd.readouterr()
    OnnxExporter().export(own, tmp_path)
    assert capfd.readouterr().out == ""
    for name, parameter in module.named_parameters():
        assert id(parameter) == before[name][0] and parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name][1])


def test_bfloat16_is_refused(make: Make, tmp_path: Path) -> None:
    component, _ = make("unet")
    with pytest.raises(ExportError, match=r"bfloat16.*float16 or float32"):
        OnnxExporter().export(replace(component, precision="bfloat16"), tmp_path)


def test_a_component_without_a_module_is_refused(make: Make, tmp_path: Path) -> None:
    component, _ = make("unet")
    with pytest.raises(ExportError, match="no module to capture"):
        OnnxExporter().export(replace(component, build=None), tmp_path)


def test_weights_too_large_for_float16_are_refused_by_name(make: Make, tmp_path: Path) -> None:
    component, _ = make("text_encoder")
    assert component.build is not None
    module = component.build()
    name, parameter = next(iter(module.named_parameters()))
    with torch.no_grad():
        parameter[0, 0] = 1e6
    own = replace(component, build=lambda: module, precision="float16", fingerprint=None)
    with pytest.raises(ExportError, match=f"{name}.*float16.*65504"):
        OnnxExporter().export(own, tmp_path)


def test_random_numbers_in_a_graph_are_refused(make: Make, tmp_path: Path) -> None:
    component, _ = make("vae_decoder")
    assert component.build is not None
    decoder = component.build()

    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = decoder

        def forward(self, latent_sample: torch.Tensor) -> Any:
            (sample,) = self.inner(latent_sample)
            return (sample + torch.randn_like(sample),)

    with pytest.raises(ExportError, match="RandomNormal"):
        OnnxExporter().export(replace(component, build=Noisy), tmp_path)


class WithConstant(torch.nn.Module):
    """Returns a loss beside its result, as an autoencoder with a codebook does: zero, whatever it is given."""

    def forward(self, sample: Any) -> Any:
        return sample * 2, torch.zeros([1])


def test_an_output_that_is_a_constant_stays(make: Make, tmp_path: Path) -> None:
    spec = make("vae_decoder")[0].spec
    sample = TensorSpec(name="sample", dtype="float", shape=(1, 4))
    signature = Signature(
        inputs=(sample,),
        outputs=(
            replace(sample, name="doubled"),
            TensorSpec(name="loss", dtype="float", shape=(1,)),
        ),
    )
    component = Component(spec=replace(spec, signature=signature), build=WithConstant)
    doubled, loss = run(
        OnnxExporter().export(component, tmp_path), {"sample": np.ones((1, 4), np.float32)}
    )
    assert (doubled == 2).all() and loss.shape == (1,) and not loss.any()


def test_importing_the_exporter_does_not_import_torch() -> None:
    code = "import sys, perfuse_exporters.onnx.exporter; print(any(m in sys.modules for m in ('torch', 'onnx')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
