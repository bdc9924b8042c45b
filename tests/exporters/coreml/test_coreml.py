"""The Core ML packages that are written: what they declare, what is in them, what they compute.

They are computed by perfuse_interpreters; none is executed on Core ML.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")

from torch import nn

from perfuse.backend import Component, ExecutionReport, StoredTensor, read_options
from perfuse.capture import capture
from perfuse.errors import ExportError, InputError
from perfuse.models.autoencoder_kl_qwen_image_21.network import Folded, Unfolded
from perfuse.models.embeddings import Timesteps
from perfuse.models.resnet import Downsample2D, Upsample2D
from perfuse.sources.checkpoint import Checkpoint
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse_coreml.program import CoreMLProgram
from perfuse_exporters.coreml.exporter import CoreMLExporter
from perfuse_exporters.coreml.mlpackage import parts_of, read_model
from perfuse_interpreters.mil.interpreter import MilPredictor

pytestmark = pytest.mark.export

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

SIZE = {"batch": 2, "latent_height": 8, "latent_width": 12}
_FLOAT32, _INT32 = 65568, 131104


class Small(nn.Module):
    """A UNet's kinds of layers, one of each: down, up, a skip, a timestep, a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 32, 3, padding=1)
        self.down = Downsample2D(32, use_conv=True)
        self.time_proj = Timesteps(32, True, 0)
        self.time = nn.Linear(32, 32)
        self.norm = nn.GroupNorm(4, 32)
        self.up = Upsample2D(32, use_conv=True)
        self.conv_out = nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, sample: Any, timestep: Any) -> Any:
        skip = self.conv_in(sample)
        hidden = self.down(skip) + self.time(self.time_proj(timestep))[:, :, None, None]
        hidden = self.up(nn.functional.silu(self.norm(hidden)), skip.shape[-2:])
        return (self.conv_out(torch.cat([hidden, skip], dim=1)),)


def signature(*inputs: str, outputs: tuple[str, ...] = ("out_sample",)) -> Signature:
    shape = ("batch", 4, "latent_height", "latent_width")
    tensors = [TensorSpec(name=name, dtype="float", shape=shape) for name in inputs]
    timestep = TensorSpec(name="timestep", dtype="float32", shape=("batch",))
    return Signature(
        inputs=tuple(timestep if t.name == "timestep" else t for t in tensors),
        outputs=tuple(TensorSpec(name=name, dtype="float", shape=shape) for name in outputs),
    )


def made(module: nn.Module, spec: Signature, **fields: Any) -> Component:
    fields.setdefault("static", SIZE)
    config = {"block_out_channels": [32, 32]}
    return Component(
        spec=ComponentSpec(
            name="unet", class_name="Small", folder="unet", config=config, signature=spec
        ),
        build=lambda: module,
        **fields,
    )


def small(*, seed: int = 0, **fields: Any) -> Component:
    torch.manual_seed(seed)
    return made(Small().eval(), signature("sample", "timestep"), **fields)


def export(component: Component, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return CoreMLExporter().export(component, folder)


def run(component: Component, main: Path, inputs: Arrays) -> Arrays:
    report = ExecutionReport(device="cpu", precision=component.precision, engine="interpreter")
    parts = [MilPredictor(part) for part in parts_of(main)]
    return CoreMLProgram(component, parts, report)(**inputs)


def inputs_of(component: Component, timestep: float = 999.3, **dims: int) -> Arrays:
    generator = np.random.default_rng(0)
    arrays: Arrays = {}
    for tensor in component.spec.signature.inputs:
        shape = tuple(int(n) for n in tensor.resolve({**component.static, **dims}))
        if tensor.dtype == "int64":
            arrays[tensor.name] = generator.integers(0, 500, shape)
        elif tensor.name == "timestep":
            arrays[tensor.name] = np.full(shape, timestep, np.float32)
        else:
            arrays[tensor.name] = generator.standard_normal(shape).astype(np.float32)
    return arrays


def reference(component: Component, inputs: Arrays) -> list[Any]:
    assert component.build is not None
    tensors = [torch.from_numpy(inputs[name]) for name in component.signature.input_names]
    with torch.no_grad():
        return [output.float().numpy() for output in component.build()(*tensors)]


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("float16", marks=pytest.mark.exhaustive)]
)
def test_another_checkpoint_in_the_graph_of_the_first(precision: str, tmp_path: Path) -> None:
    """Its weights are written without a conversion, and compute what converted ones compute."""
    first, second = small(precision=precision), small(precision=precision, seed=1)
    for name in ("graph", "filled"):
        (tmp_path / name).mkdir()
    graph, weights = CoreMLExporter().export_graph(first, tmp_path / "graph")
    assert second.build is not None
    tensors = StoredTensor.all_of(second.build())
    assert {one.tensor for one in weights.constants.values()} == tensors.keys()
    main = CoreMLExporter().fill(graph, weights, tensors, tmp_path / "filled")
    inputs, whole = inputs_of(second), export(second, tmp_path / "whole")
    found, wanted = (run(second, one, inputs)["out_sample"] for one in (main, whole))
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()
    assert error(second, main, inputs) < (1e-5 if precision == "float32" else 5e-3)
    sizes = [sum(p.stat().st_size for p in one.rglob("*.bin")) for one in (graph, main)]
    assert sizes[0] < 0.1 * sizes[1]


def test_a_graph_with_what_follows_from_weights(tmp_path: Path) -> None:
    class Folded(Small):
        def forward(self, sample: Any, timestep: Any) -> Any:
            (out,) = super().forward(sample, timestep)
            return (out * (self.conv_out.bias * self.norm.bias[:4])[:, None, None],)

    component = made(Folded().eval(), signature("sample", "timestep"))
    with pytest.raises(ExportError, match="cannot be told apart"):
        CoreMLExporter().export_graph(component, tmp_path)


def error(component: Component, main: Path, inputs: Arrays) -> float:
    """The largest difference to the reference in any output, relative to its largest value."""
    got, want = run(component, main, inputs), reference(component, inputs)
    pairs = zip(got.values(), want, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def operations(main: Path) -> list[tuple[str, str]]:
    """The type of each operation with the dtype of its first output, in order."""
    model, _ = read_model(main)
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    names = {10: "float16", 11: "float32"}
    return [
        (op.type, names.get(op.outputs[0].type.tensorType.dataType, "other"))
        for op in block.operations
    ]


def weight_bytes(main: Path) -> int:
    return sum(path.stat().st_size for path in main.rglob("weight.bin"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small(), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small(precision="float16"), tmp_path_factory.mktemp("half"))


def test_a_text_encoder_has_the_signatures_names_and_types(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    static = {"batch": 1, "sequence": 7}
    component = Checkpoint.open(checkpoint("sd1")).component("text_encoder", static=static)
    main = export(component, tmp_path)
    assert main.name == "model.mlpackage"
    model, _ = read_model(main)
    described = {
        one.name: (tuple(one.type.multiArrayType.shape), one.type.multiArrayType.dataType)
        for one in (*model.description.input, *model.description.output)
    }
    wanted = {t.name: (t.shape, _FLOAT32) for t in component.signature.outputs}
    assert described == {"input_ids": ((1, 7), _INT32), **wanted}
    assert error(component, main, inputs_of(component)) < 1e-5


def test_it_computes_what_torch_computes(plain: Path) -> None:
    component = small()
    assert error(component, plain, inputs_of(component)) < 1e-5
    assert {dtype for kind, dtype in operations(plain) if kind != "const"} == {"float32"}
    # Not coremltools' batch norm of variance one, whose epsilon makes everything smaller.
    kinds = [kind for kind, _ in operations(plain)]
    assert "batch_norm" not in kinds and kinds.count("instance_norm") == 1


def test_in_half_precision_a_phase_stays_float32(half: Path) -> None:
    component = small(precision="float16")
    kinds = dict(operations(half))
    assert (kinds["cos"], kinds["sin"], kinds["conv"]) == ("float32", "float32", "float16")
    # Measured 5e-4; with the phase of 999.5 in place of 999.3 it is 0.05.
    assert error(component, half, inputs_of(component)) < 3e-3
    assert weight_bytes(half) < 0.6 * weight_bytes(export(small(), half.parent / "full"))


def test_a_group_norm_of_large_values_does_not_overflow(half: Path) -> None:
    component = small(precision="float16")
    inputs = inputs_of(component)
    inputs["sample"] *= 1000  # the square of which float16 has no number for
    assert error(component, half, inputs) < 3e-3


class Activated(nn.Module):
    """GELU in both forms, beside a tanh of its own."""

    def forward(self, sample: Any) -> Any:
        wide = 3 * sample
        gelu = nn.functional.gelu
        return (gelu(wide, approximate="tanh") - gelu(wide), gelu(wide) + sample.tanh())


def test_each_form_of_gelu_is_one_operation_of_that_form(tmp_path: Path) -> None:
    """They differ by up to 5e-4, which is what the first output is."""
    component = made(Activated(), signature("sample", outputs=("difference", "sum")))
    main, inputs = export(component, tmp_path), inputs_of(component)
    assert [kind for kind, _ in operations(main)].count("gelu") == 2
    found, (difference, _) = run(component, main, inputs), reference(component, inputs)
    assert np.abs(difference).max() > 2e-4
    assert np.abs(found["difference"] - difference).max() < 1e-6


class Shortcuts(nn.Module):
    """What halves a picture beside an autoencoder's blocks, and what doubles it."""

    def __init__(self) -> None:
        super().__init__()
        self.fold, self.unfold = Folded(8, times=2, sides=2), Unfolded(8, 4, times=2)

    def forward(self, sample: Any) -> Any:
        return (self.unfold(self.fold(sample)),)


def test_shortcuts_of_an_autoencoder_have_no_more_axes_than_core_ml(tmp_path: Path) -> None:
    component = made(Shortcuts(), signature("sample"))
    assert error(component, export(component, tmp_path), inputs_of(component)) < 1e-6


class Attends(nn.Module):
    def forward(self, sample: Any) -> Any:
        tokens = sample.flatten(2)
        return (nn.functional.scaled_dot_product_attention(tokens, tokens, tokens) * 2,)


@pytest.mark.parametrize("upcast", [True, False])
def test_attention_is_float32_where_the_model_says_so(upcast: bool, tmp_path: Path) -> None:
    component = made(Attends(), signature("sample"), precision="float16")
    config = {"upcast_attention": upcast}
    component = dataclasses.replace(
        component, spec=dataclasses.replace(component.spec, config=config)
    )
    kinds = operations(export(component, tmp_path))
    found = [dtype for kind, dtype in kinds if kind in ("matmul", "softmax")]
    assert found == ["float32" if upcast else "float16"] * 3


def test_one_package_takes_several_sizes_and_no_other(tmp_path: Path) -> None:
    sizes = ({"latent_height": 8}, {"latent_height": 12})
    component = small(static={"batch": 1, "latent_width": 8}, sizes=sizes)
    main = export(component, tmp_path)
    for size in sizes:
        assert error(component, main, inputs_of(component, **size)) < 1e-5
    with pytest.raises(InputError, match="latent_height 10"):
        run(component, main, inputs_of(component, latent_height=10))


def test_what_was_halved_from_an_odd_size_is_doubled_and_cropped(tmp_path: Path) -> None:
    component = small(static={"batch": 1, "latent_height": 9, "latent_width": 12})
    main = export(component, tmp_path)
    assert error(component, main, inputs_of(component)) < 1e-5


def test_sizes_that_cannot_be_doubled_again_are_refused(tmp_path: Path) -> None:
    sizes = ({"latent_height": 8}, {"latent_height": 9})
    with pytest.raises(InputError, match="odd where it is halved"):
        export(small(static={"batch": 1, "latent_width": 8}, sizes=sizes), tmp_path)


class Sum(nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return (left + 2 * right,)


def test_several_inputs_that_change_need_a_later_system(tmp_path: Path) -> None:
    sizes = ({"latent_height": 8}, {"latent_height": 16})
    component = made(
        Sum(), signature("left", "right"), static={"batch": 1, "latent_width": 8}, sizes=sizes
    )
    with pytest.raises(InputError, match="left and right"):
        export(component, tmp_path)
    component = dataclasses.replace(component, options={"deployment_target": "iOS18"})
    main = export(component, tmp_path / "later")
    assert error(component, main, inputs_of(component, latent_height=16)) < 1e-6


@pytest.mark.parametrize(
    ("options", "ratio", "bound"),
    [
        ({"palettize": "8"}, 0.4, 0.02),
        ({"palettize": "4"}, 0.3, 0.2),
        ({"quantize": "int8"}, 0.4, 0.02),
    ],
    ids=["8 bits", "4 bits", "int8"],
)
def test_weights_are_compressed(
    options: Mapping[str, str], ratio: float, bound: float, plain: Path, tmp_path: Path
) -> None:
    component = small(options=options)
    main = export(component, tmp_path)
    assert weight_bytes(main) < ratio * weight_bytes(plain)
    # Something is lost, and no more than so many bits lose.
    assert 1e-4 < error(component, main, inputs_of(component)) < bound
    # The passes that run once more leave the normalisation as it was.
    assert "batch_norm" not in [kind for kind, _ in operations(main)]


def test_two_chunks_hold_half_of_the_weights_each(plain: Path, tmp_path: Path) -> None:
    component = small(options={"chunks": "2"})
    main = export(component, tmp_path)
    names = ["model_chunk1.mlpackage", "model_chunk2.mlpackage"]
    assert main.name == names[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert max(weight_bytes(part) for part in parts_of(main)) < 0.75 * weight_bytes(plain)
    assert error(component, main, inputs_of(component)) < 1e-5


def test_the_same_export_writes_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        component = small(precision="float16", options={"palettize": "6"})
        main = export(component, tmp_path / name)
        files = [path for path in sorted(main.rglob("*")) if path.is_file()]
        written.append({str(path.relative_to(main)): path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert len(written[0]) == 3  # the program, the weights, the manifest; no clutter


def test_a_package_says_what_it_was_made_as(tmp_path: Path) -> None:
    main = export(small(options={"compute_units": "CPU_AND_NE"}), tmp_path)
    notes = read_model(main)[0].description.metadata.userDefined
    said = {name.removeprefix("perfuse."): notes[name] for name in notes if "perfuse" in name}
    assert said == {
        "component": "unet",
        "precision": "float32",
        "deployment_target": "iOS16",
        "compute_units": "CPU_AND_NE",
    }


SEVERAL = {
    "sizes": ({"latent_height": 8}, {"latent_height": 16}),
    "static": {"batch": 1, "latent_width": 8},
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "bfloat16"}, "bfloat16.*float32, float16"),
        ({"static": {"batch": 2}}, "any latent_height, latent_width"),
        ({"options": {"palettize": "6", "quantize": "int8"}}, "stored in one way"),
        ({"options": {"palettize": "6", "deployment_target": "macOS12"}}, "macOS12.*iOS16"),
        ({"options": {"chunks": "2"}, **SEVERAL}, "two chunks for several sizes"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    fields: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    component = dataclasses.replace(small(**fields), build=lambda: pytest.fail("it was built"))
    with pytest.raises((ExportError, InputError), match=message):
        export(component, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"palettise": "6"}, "option palettise.*palettize"),
        ({"palettize": "5"}, "palettize=5.*1, 2, 4, 6, 8"),
        ({"compute_units": "GPU"}, "compute_units=GPU.*CPU_AND_NE"),
    ],
)
def test_options_that_there_are_not(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_options(options, CoreMLExporter.options, of="coreml")


class Unsupported(nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return (torch.linalg.qr(left)[0] + right[:, :, :8, :8].sum(),)


def test_an_operator_that_coremltools_lacks_is_named(tmp_path: Path) -> None:
    component = made(Unsupported(), signature("left", "right"), static={**SIZE, "latent_width": 8})
    with pytest.raises(ExportError, match=r"unet \(Small\).*linalg_qr"):
        export(component, tmp_path)
    missing = CoreMLExporter().unsupported(capture(component), component)
    assert list(missing) == ["aten.linalg_qr.default"]
    assert CoreMLExporter().unsupported(capture(small(static={})), small()) == {}


class Passing(nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        doubled = left * 2
        return doubled, right, doubled


def test_an_output_may_be_an_input_or_given_twice(tmp_path: Path) -> None:
    spec = signature("left", "right", outputs=("doubled", "same", "again"))
    component = made(Passing(), spec)
    assert error(component, export(component, tmp_path), inputs_of(component)) < 1e-6


def test_the_users_module_is_left_as_it_is(tmp_path: Path) -> None:
    component = small(precision="float16", options={"palettize": "2"})
    assert component.build is not None
    module = component.build().half()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export(dataclasses.replace(component, build=lambda: module), tmp_path)
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, before[name])


def test_coremltools_is_not_heard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    export(made(Sum(), signature("left", "right")), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("coremltools")]
    code = "from perfuse_exporters.coreml.exporter import import_coremltools; import_coremltools()"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
