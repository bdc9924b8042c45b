"""The OpenVINO IR that is written: its names, sizes and weights, and the numbers it computes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from tests.exporters.openvino.graphs import (
    assert_close,
    computes_in,
    inputs_of,
    model_of,
    odd_spec,
    reference,
    run,
)

from perfuse.backend import Component, Constant, StoredTensor, WeightMap
from perfuse.errors import ExportError
from perfuse.sources.checkpoint import Checkpoint
from perfuse_exporters.openvino.engine import import_openvino
from perfuse_exporters.openvino.exporter import OpenVinoExporter
from perfuse_exporters.openvino.weights import bind

pytestmark = pytest.mark.export

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
    kinds = {
        port.element_type.to_string() for port in model_of(path).inputs + model_of(path).outputs
    }
    assert not kinds & {"f16", "bf16"}


@pytest.mark.parametrize("timestep", [999.3, 12.9])
def test_phases_stay_float32_in_half_precision_arithmetic(timestep: float, make: Make) -> None:
    """Unmarked, 999.3 becomes 1000 in bfloat16, and the error is three times what torch makes."""
    if not computes_in("bf16"):
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
        for op in model_of(path).get_ops()
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
    assert model_of(path).inputs[0].partial_shape.to_shape() == [2, 4, 12, 8]
    assert model_of(path).outputs[0].partial_shape.to_shape() == [2, 3, 24, 16]
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


class Unsupported(torch.nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return (torch.linalg.qr(left)[0] + right[:, :, :4].sum(),)


class Passing(torch.nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return left * 2, right


def test_an_operation_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    component = Component(spec=odd_spec("result"), build=Unsupported)
    with pytest.raises(ExportError, match=r"odd.*aten\.linalg_qr"):
        OpenVinoExporter().export(component, tmp_path)
    assert not list(tmp_path.iterdir())


def test_outputs_that_the_signature_does_not_know_are_refused(tmp_path: Path) -> None:
    component = Component(spec=odd_spec("result"), build=Passing)
    with pytest.raises(ExportError, match="2 outputs"):
        OpenVinoExporter().export(component, tmp_path)


def test_an_output_that_is_an_input_has_both_names(tmp_path: Path) -> None:
    path = OpenVinoExporter().export(
        Component(spec=odd_spec("doubled", "same"), build=Passing), tmp_path
    )
    arrays = {name: np.full((1, 4, 6), i, np.float32) for i, name in enumerate(("left", "right"))}
    doubled, same = run(path, arrays)
    assert (doubled == 0).all() and (same == 1).all()
    assert [name for port in model_of(path).outputs for name in port.names if name == "same"]


def test_an_artifact_has_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="artifact"):
        OpenVinoExporter().export(Component(spec=odd_spec("result")), tmp_path)


def test_openvino_is_imported_without_its_telemetry() -> None:
    code = (
        "import sys\n"
        "from perfuse_exporters.openvino.engine import import_openvino\n"
        "assert callable(import_openvino().convert_model)\n"
        "assert 'torch' not in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
