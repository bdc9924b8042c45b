"""The OpenVINO IR that is written: its names, sizes and weights, and the numbers it computes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from perfuse.backend import Component, Constant, StoredTensor, WeightMap
from perfuse.errors import ExportError
from perfuse.sources.checkpoint import Checkpoint
from perfuse.spec import ComponentSpec, Dim, Signature, TensorSpec
from perfuse_exporters.openvino.engine import import_openvino
from perfuse_exporters.openvino.exporter import OpenVinoExporter
from perfuse_exporters.openvino.gates import split_gates
from perfuse_exporters.openvino.weights import bind

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
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Make]:
    """``make("unet", precision="bfloat16")``: an export, made once."""
    made: dict[str, Exported] = {}

    def export(name: str, **options: Any) -> Exported:
        key = json.dumps([name, options], sort_keys=True)
        if key not in made:
            component = Checkpoint.open(checkpoint("sd1")).component(name, **options)
            folder = tmp_path_factory.mktemp(name)
            made[key] = component, OpenVinoExporter().export(component, folder)
        return made[key]

    yield export


def inputs_of(component: Component, dims: Mapping[str, int], timestep: float = 961.733) -> Arrays:
    generator = np.random.default_rng(0)
    arrays: Arrays = {}
    for tensor in component.spec.signature.inputs:
        shape = tuple(int(size) for size in tensor.resolve(dims))
        if tensor.dtype == "int64":
            arrays[tensor.name] = generator.integers(0, 500, shape)
        elif tensor.name == "timestep":
            arrays[tensor.name] = np.full(shape, timestep, np.float32)
        else:
            arrays[tensor.name] = generator.standard_normal(shape).astype(np.float32)
    return arrays


def run(path: Path, inputs: Arrays, hint: str = "f32") -> list[Any]:
    """The outputs in the file's order."""
    properties = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": "1"}
    compiled = import_openvino().Core().compile_model(str(path), "CPU", properties)
    return [array.copy() for array in compiled(inputs).values()]


def reference(component: Component, inputs: Arrays, dtype: Any = None) -> list[Any]:
    assert component.build is not None
    module = component.build()
    if dtype is not None:
        module = module.to(dtype)
    tensors = []
    for tensor in component.spec.signature.inputs:
        value = torch.from_numpy(inputs[tensor.name])
        tensors.append(value.to(dtype) if dtype is not None and tensor.dtype == "float" else value)
    with torch.no_grad():
        return [output.float().numpy() for output in module(*tensors)]


def assert_close(got: Any, want: Any) -> None:
    # Both compute in float32 and add up in another order: some 1e-6 of the largest value here.
    # A wrong table, a size baked in or swapped inputs are off by more than 1e-2.
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 3e-5 * max(1.0, float(np.abs(want).max()))


@pytest.mark.parametrize("name", NAMES)
def test_names_order_and_shapes_are_the_signatures(name: str, make: Make) -> None:
    component, path = make(name)
    assert path.name == "openvino_model.xml"
    assert path.with_suffix(".bin").is_file()
    model = import_openvino().Core().read_model(str(path))
    for ports, tensors in (
        (model.inputs, component.signature.inputs),
        (model.outputs, component.signature.outputs),
    ):
        assert [port.names for port in ports] == [{tensor.name} for tensor in tensors]
    for port, tensor in zip(model.inputs, component.signature.inputs, strict=True):
        shape = [dim.get_length() if dim.is_static else None for dim in port.partial_shape]
        assert shape == [dim if isinstance(dim, int) else None for dim in tensor.shape]
        wanted = "int64_t" if tensor.dtype == "int64" else "float32"
        assert port.element_type.to_dtype() == np.dtype(wanted.removesuffix("_t"))


def test_a_maximum_is_a_bound(make: Make) -> None:
    _, path = make("text_encoder")
    ids = import_openvino().Core().read_model(str(path)).inputs[0].partial_shape
    assert ids[1].get_max_length() == 77


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_torch_computes_at_every_size(name: str, make: Make) -> None:
    component, path = make(name)
    for dims in SIZES[name]:
        inputs = inputs_of(component, dims)
        for got, want in zip(run(path, inputs), reference(component, inputs), strict=True):
            assert_close(got, want)


def test_attention_and_resizing_are_single_operations(make: Make) -> None:
    _, path = make("unet")
    ops = [op.get_type_name() for op in import_openvino().Core().read_model(str(path)).get_ops()]
    assert ops.count("ScaledDotProductAttention") == 8
    assert ops.count("Interpolate") == 1
    assert "Softmax" not in ops
    assert ops.count("ShapeOf") <= 2


def test_a_fraction_of_a_timestep_counts(make: Make) -> None:
    component, path = make("unet")
    dims = SIZES["unet"][0]
    outputs = {
        step: run(path, inputs_of(component, dims, step))[0] for step in (12.0, 12.9, 979.612)
    }
    assert np.abs(outputs[12.9] - outputs[12.0]).max() > 1e-3
    for step, got in outputs.items():
        assert_close(got, reference(component, inputs_of(component, dims, step))[0])


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("vae_encoder", "float16"),
        pytest.param("text_encoder", "bfloat16", marks=pytest.mark.exhaustive),
    ],
)
def test_the_precision_is_that_of_the_weights(name: str, precision: str, make: Make) -> None:
    component, path = make(name, precision=precision)
    full, full_path = make(name)
    size, full_size = (p.with_suffix(".bin").stat().st_size for p in (path, full_path))
    assert size < 0.51 * full_size
    inputs = inputs_of(component, SIZES[name][1])
    # Weights rounded to half precision, arithmetic in float32: no worse than torch is in half.
    want = reference(full, inputs)[0]
    torch_error = np.abs(reference(component, inputs, getattr(torch, precision))[0] - want).mean()
    error = np.abs(run(path, inputs)[0] - want).mean()
    assert 0 < error < torch_error
    kinds = {port.element_type.to_string() for port in _model(path).inputs + _model(path).outputs}
    assert not kinds & {"f16", "bf16"}


def _model(path: Path) -> Any:
    return import_openvino().Core().read_model(str(path))


def _computes_in(hint: str) -> bool:
    names = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"bf16": "BF16", "f16": "FP16"}[hint] in names


@pytest.mark.parametrize("timestep", [999.3, 12.9])
def test_phases_stay_float32_in_half_precision_arithmetic(timestep: float, make: Make) -> None:
    """Unmarked, 999.3 becomes 1000 in bfloat16, and the error is three times what torch makes."""
    if not _computes_in("bf16"):
        pytest.skip("this CPU has no bfloat16")
    component, path = make("unet")
    inputs = inputs_of(component, SIZES["unet"][0], timestep)
    want = reference(component, inputs)[0]
    torch_error = np.sqrt(np.mean((reference(component, inputs, torch.bfloat16)[0] - want) ** 2))
    error = np.sqrt(np.mean((run(path, inputs, "bf16")[0] - want) ** 2))
    assert error < 1.3 * torch_error


def test_the_file_marks_what_widens_a_weight(make: Make) -> None:
    """Unmarked, OpenVINO keeps each weight in float32, too."""
    _, path = make("text_encoder", precision="bfloat16")
    widening = [
        op
        for op in _model(path).get_ops()
        if op.get_type_name() == "Convert"
        and op.input_value(0).get_node().get_type_name() == "Constant"
        and op.input_value(0).get_element_type().to_string() == "bf16"
    ]
    assert len(widening) > 10
    assert all("decompression_0" in op.get_rt_info() for op in widening)


def test_a_weight_that_lies_elsewhere_is_marked_too() -> None:
    import openvino as ov
    from openvino import opset13

    x = opset13.parameter([4, 4], ov.Type.f32, name="x")
    w = opset13.parameter([4, 4], ov.Type.bf16, name="w")
    model = ov.Model([opset13.matmul(x, opset13.convert(w, "f32"), False, False)], [x, w])
    w.set_friendly_name("w")
    weights = WeightMap(constants={"w": Constant(tensor="w", dtype="bfloat16", shape=(4, 4))})
    stored = StoredTensor(dtype="float32", array=np.ones((4, 4), np.float32))
    held = bind(ov, model, weights, {"w": stored})
    (widening,) = [op for op in model.get_ops() if op.get_type_name() == "Convert"]
    assert "decompression_0" in widening.get_rt_info()
    assert [one.nbytes for one in held] == [32]


def test_the_file_marks_what_leads_to_a_sine(make: Make) -> None:
    _, path = make("unet")
    marked = {
        str(layer.get("type"))
        for layer in ElementTree.parse(path).iter("layer")
        if layer.find("rt_info/attribute[@name='precise']") is not None
    }
    assert marked == {"Parameter", "Const", "Reshape", "Multiply", "Sin", "Cos"}


def test_a_static_export_has_its_sizes(make: Make) -> None:
    static = {"batch": 2, "latent_height": 12, "latent_width": 8}
    component, path = make("vae_decoder", static=static)
    assert _model(path).inputs[0].partial_shape.to_shape() == [2, 4, 12, 8]
    assert _model(path).outputs[0].partial_shape.to_shape() == [2, 3, 24, 16]
    inputs = inputs_of(component, static)
    assert_close(run(path, inputs)[0], reference(component, inputs)[0])


def test_the_users_module_is_left_as_it_is(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    component = Checkpoint.open(checkpoint("sd1")).component("text_encoder")
    assert component.build is not None
    module = component.build()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    OpenVinoExporter().export(
        Component(spec=component.spec, precision="float16", build=lambda: module), tmp_path
    )
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def _spec(*outputs: str) -> ComponentSpec:
    def tensor(name: str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float", shape=("batch", 4, 6))

    return ComponentSpec(
        name="odd",
        class_name="Odd",
        folder="odd",
        config={},
        signature=Signature(
            inputs=(tensor("left"), tensor("right")),
            outputs=tuple(tensor(name) for name in outputs),
        ),
    )


class Unsupported(torch.nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return (torch.linalg.qr(left)[0] + right[:, :, :4].sum(),)


class Passing(torch.nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return left * 2, right


def test_an_operation_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    component = Component(spec=_spec("result"), build=Unsupported)
    with pytest.raises(ExportError, match=r"odd.*aten\.linalg_qr"):
        OpenVinoExporter().export(component, tmp_path)
    assert not list(tmp_path.iterdir())


def test_outputs_that_the_signature_does_not_know_are_refused(tmp_path: Path) -> None:
    component = Component(spec=_spec("result"), build=Passing)
    with pytest.raises(ExportError, match="2 outputs"):
        OpenVinoExporter().export(component, tmp_path)


def test_an_output_that_is_an_input_has_both_names(tmp_path: Path) -> None:
    path = OpenVinoExporter().export(
        Component(spec=_spec("doubled", "same"), build=Passing), tmp_path
    )
    arrays = {name: np.full((1, 4, 6), i, np.float32) for i, name in enumerate(("left", "right"))}
    doubled, same = run(path, arrays)
    assert (doubled == 0).all() and (same == 1).all()
    assert [name for port in _model(path).outputs for name in port.names if name == "same"]


def test_an_artifact_has_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="artifact"):
        OpenVinoExporter().export(Component(spec=_spec("result")), tmp_path)


class Modulated(torch.nn.Module):
    """A block of a ResNet whose time scales and shifts what was normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(4, 8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.norm.parameters():
            torch.nn.init.normal_(parameter, generator=generator)

    def forward(self, left: Any, right: Any) -> Any:
        scale, shift = right[..., None, None].chunk(2, dim=1)
        return (self.norm(left) * (1 + scale) + shift,)


def test_a_normalisation_that_is_modulated_compiles_at_a_known_size(tmp_path: Path) -> None:
    inputs = (
        TensorSpec(name="left", dtype="float", shape=(2, 8, 6, 6)),
        TensorSpec(name="right", dtype="float", shape=(2, 16)),
    )
    output = TensorSpec(name="result", dtype="float", shape=(2, 8, 6, 6))
    signature = Signature(inputs=inputs, outputs=(output,))
    component = Component(spec=replace(_spec(), signature=signature), build=Modulated)
    path = OpenVinoExporter().export(component, tmp_path)
    # It ended the process once: one of its own says so without ending this one.
    code = f"import openvino; openvino.Core().compile_model({str(path)!r}, 'CPU')"
    subprocess.run([sys.executable, "-c", code], check=True)
    arrays = inputs_of(component, {})
    (got,), (want,) = run(path, arrays), reference(component, arrays)
    assert_close(got, want)


class Gated(torch.nn.Module):
    """A language model's feed-forward network; ``fused`` has its gate and the rest in one matrix."""

    def __init__(self, activation: Any, *, fused: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        sizes = ((128, 32),) if fused else ((64, 32), (64, 32))
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(inner, outer, bias=False) for outer, inner in (*sizes, (32, 64))
        )
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
            parameter.data = parameter.data.bfloat16().float()  # which the file holds exactly
        self.activation = activation

    def forward(self, left: Any) -> Any:
        *first, last = self.layers
        halves = [layer(left) for layer in first]
        gate, up = halves if len(halves) == 2 else halves[0].chunk(2, dim=-1)
        return (last(self.activation(gate) * up),)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu-tanh"])
def test_a_gated_network_in_half_precision_is_not_joined(
    kind: str, fused: bool, tmp_path: Path
) -> None:
    activation = {
        "silu": torch.nn.SiLU(),
        "gelu": torch.nn.GELU(),
        "gelu-tanh": torch.nn.GELU(approximate="tanh"),
    }[kind]
    tensor = TensorSpec(name="left", dtype="float", shape=("batch", "sequence", 32))
    signature = Signature(inputs=(tensor,), outputs=(replace(tensor, name="result"),))
    spec = replace(
        _spec(), signature=signature, dims={"batch": Dim(example=2), "sequence": Dim(example=7)}
    )
    component = Component(
        spec=spec, build=partial(Gated, activation, fused=fused), precision="bfloat16"
    )
    path = OpenVinoExporter().export(component, tmp_path)
    assert not {op.get_type_name() for op in _model(path).get_ops()} & {"Swish", "Gelu"}
    arrays = inputs_of(component, {"batch": 2, "sequence": 9})
    assert_close(run(path, arrays)[0], reference(component, arrays)[0])
    # Joined, it ended the process where the processor has matrix units.
    np.savez(tmp_path / "inputs.npz", **arrays)
    code = (
        "import sys, numpy, openvino\n"
        "hint = {'INFERENCE_PRECISION_HINT': 'bf16', 'INFERENCE_NUM_THREADS': '1'}\n"
        "model = openvino.Core().compile_model(sys.argv[1], 'CPU', hint)\n"
        "model(dict(numpy.load(sys.argv[2])))\n"
    )
    if _computes_in("bf16"):
        given = [str(path), str(tmp_path / "inputs.npz")]
        subprocess.run([sys.executable, "-c", code, *given], check=True)


def test_a_gate_that_came_through_onnx_is_not_joined() -> None:
    """Its activation is a product with a sigmoid there, which the plugin joins all the same."""
    from openvino import opset13 as ops

    x = ops.parameter([1, 9, 32], np.float32)
    rng = np.random.default_rng(0)
    gate, up, down = (
        rng.standard_normal(size).astype(np.float32) for size in ((32, 64), (32, 64), (64, 32))
    )
    left, right = ops.matmul(x, gate, False, False), ops.matmul(x, up, False, False)
    gated = ops.multiply(ops.multiply(left, ops.sigmoid(left)), right)
    model = openvino.Model([ops.matmul(gated, down, False, False)], [x], "gated")
    given = rng.standard_normal((1, 9, 32)).astype(np.float32)
    gates = given @ gate
    want = (gates / (1 + np.exp(-gates)) * (given @ up)) @ down
    split_gates(model)
    last = model.get_results()[0].input_value(0).get_node()
    share, product = (one.get_node() for one in last.input_value(0).get_node().input_values())
    assert share.get_type_name() == "Sigmoid"
    assert [one.get_node().get_type_name() for one in product.input_values()] == ["MatMul"] * 2
    got = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)[0]
    assert_close(got, want)


class Square(torch.nn.Module):
    """Attention of four tokens with four heads, whose queries and keys are turned."""

    def forward(self, left: Any, right: Any) -> Any:
        query, key, value = (left.view(2, 4, 4, 24).transpose(1, 2)).chunk(3, dim=-1)
        turned = (query * right, key * right, value)
        seen = torch.nn.functional.scaled_dot_product_attention(*turned, attn_mask=right[:, :4] > 0)
        plain = torch.nn.functional.scaled_dot_product_attention(*turned, scale=0.5)
        return ((seen + plain).transpose(1, 2).flatten(2) + plain.transpose(1, 2).flatten(2),)


def test_attention_of_as_many_tokens_as_heads(tmp_path: Path) -> None:
    """OpenVINO takes one for the other where they are as many, and where the sizes are known."""
    inputs = (
        TensorSpec(name="left", dtype="float", shape=(2, 4, 96)),
        TensorSpec(name="right", dtype="float", shape=(4, 8)),
    )
    output = TensorSpec(name="result", dtype="float", shape=(2, 4, 32))
    signature = Signature(inputs=inputs, outputs=(output,))
    component = Component(spec=replace(_spec(), signature=signature), build=Square)
    path = OpenVinoExporter().export(component, tmp_path)
    code = f"import openvino; openvino.Core().compile_model({str(path)!r}, 'CPU')"
    subprocess.run([sys.executable, "-c", code], check=True)  # which it ended once
    arrays = inputs_of(component, {}) | {"right": np.sin(np.arange(32, dtype="f")).reshape(4, 8)}
    (got,), (want,) = run(path, arrays), reference(component, arrays)
    assert_close(got, want)


def _of_one_tensor(given: tuple[Any, ...], result: tuple[Any, ...]) -> ComponentSpec:
    """A component of one input, ``given``, and one output of these shapes, of any batch."""
    signature = Signature(
        inputs=(TensorSpec(name="given", dtype="float32", shape=given),),
        outputs=(TensorSpec(name="result", dtype="float", shape=result),),
    )
    return replace(_spec(), signature=signature, dims={"batch": Dim(example=2)})


class Rounded(torch.nn.Module):
    """Rounds to bfloat16 itself, as Kandinsky 5 rounds the queries and keys of its attention."""

    def forward(self, left: Any) -> Any:
        return (left.to(torch.bfloat16).to(left.dtype),)


@pytest.mark.parametrize("size", ["batch", 64])
def test_what_is_rounded_to_bfloat16_is_rounded_to_the_nearest(
    size: str | int, tmp_path: Path
) -> None:
    """Of a size that is not fixed OpenVINO rounds a quarter of all numbers the wrong way."""
    spec = _of_one_tensor((size, 3), (size, 3))
    path = OpenVinoExporter().export(Component(spec=spec, build=Rounded), tmp_path)
    numbers = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    numbers[:, 1] = np.arange(64) + 0.5 + 512  # half-way between two, or a quarter
    numbers[:8, 2] = [np.inf, -np.inf, -3.4e38, 1.0 + 2**-7, 1.0 + 2**-8, 0.0, -257.0, 1e-30]
    assert np.array_equal(
        run(path, {"given": numbers})[0], torch.tensor(numbers).bfloat16().float()
    )


class RoundedBetween(Rounded):
    """The same between two layers, which engines compute in half precision where they are asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = torch.nn.Linear(3, 8), torch.nn.Linear(8, 3)

    def forward(self, left: Any) -> Any:
        return (self.after(super().forward(self.before(left))[0]),)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_what_is_rounded_in_half_precision(precision: str, tmp_path: Path) -> None:
    hint = {"bfloat16": "bf16", "float16": "f16"}[precision]
    if not _computes_in(hint):
        pytest.skip(f"this CPU has no {precision}")
    spec = _of_one_tensor(("batch", 3), ("batch", 3))
    torch.manual_seed(0)
    module = RoundedBetween()
    component = Component(spec=spec, build=lambda: module, precision=precision)
    path = OpenVinoExporter().export(component, tmp_path)
    numbers = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module.float()(torch.tensor(numbers))[0].numpy()
    found = run(path, {"given": numbers}, hint)[0]
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


class Waves(torch.nn.Module):
    """Sinusoids of the share of a picture that is there, in thousandths, as Z-Image has them."""

    def forward(self, timestep: Any) -> Any:
        phase = ((1000 - timestep) / 1000 * 1000)[:, None] * torch.linspace(0.1, 1, 32)
        return (phase.cos(),)


def test_phases_that_count_backwards_stay_float32(tmp_path: Path) -> None:
    """In bfloat16 999 is 1000, and one radian wrong."""
    if not _computes_in("bf16"):
        pytest.skip("this CPU has no bfloat16")
    spec = _of_one_tensor(("batch",), ("batch", 32))
    component = Component(spec=spec, build=Waves, precision="bfloat16")
    path = OpenVinoExporter().export(component, tmp_path)
    arrays = {"given": np.array([1.0, 53.58, 946.42], np.float32)}
    (want,) = reference(component, arrays)
    assert np.abs(run(path, arrays, "bf16")[0] - want).max() < 0.01
    assert np.abs(run(path, arrays)[0] - want).max() < 1e-3


def test_small_phases_that_count_backwards_are_exact_in_float32(tmp_path: Path) -> None:
    component = Component(spec=_of_one_tensor(("batch",), ("batch", 32)), build=Waves)
    path = OpenVinoExporter().export(component, tmp_path)
    timesteps = np.array([999.0, 990.0, 946.0], np.float32)
    phases = (1000 - timesteps.astype(np.float64))[:, None] * np.linspace(0.1, 1, 32)
    assert np.abs(run(path, {"given": timesteps})[0] - np.cos(phases)).max() < 1e-5


def test_openvino_is_imported_without_its_telemetry() -> None:
    code = (
        "import sys\n"
        "from perfuse_exporters.openvino.engine import import_openvino\n"
        "assert callable(import_openvino().convert_model)\n"
        "assert 'torch' not in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_sizes_of_heads_are_known(exported: Callable[[str, str], Path]) -> None:
    """Also where the number of tokens follows from height and width; else attention is slower."""
    folder = exported("sdxl", "openvino")
    model = import_openvino().Core().read_model(folder / "unet" / "openvino_model.xml")
    kind = "ScaledDotProductAttention"
    attentions = [op for op in model.get_ops() if op.get_type_name() == kind]
    assert attentions
    for op in attentions:
        for place in range(3):
            _, heads, _, width = op.get_input_partial_shape(place)
            assert heads.is_static and width.is_static


def test_a_weight_that_is_a_frequency_is_a_weight(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Fourier features are multiplied with a weight before the sine."""
    component = Checkpoint.open(checkpoint("latent-upscaler")).component("unet")
    folder = tmp_path / "graph"
    folder.mkdir()
    graph, weights = OpenVinoExporter().export_graph(component, folder)
    ports = import_openvino().Core().read_model(graph).get_parameters()
    names = {port.get_friendly_name() for port in ports}
    assert names == {*weights.constants, *component.signature.input_names}
