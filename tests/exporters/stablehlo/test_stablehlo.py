"""The StableHLO that is written: its files, the numbers it computes, and what a reader refuses."""

import dataclasses
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("jax")

from torch import nn

from perfuse.backend import Component, Target
from perfuse.capture import capture
from perfuse.errors import ArtifactError, ExecutionError, ExportError, InputError
from perfuse.plugins import host
from perfuse.run.export import exported
from perfuse.run.graphs import filled
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.plain import to_plain
from perfuse.sources.store import ArtifactStore
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse_conformance.reference.other_weights import with_other_weights
from perfuse_exporters.stablehlo.engine import import_jax, settings
from perfuse_exporters.stablehlo.exporter import StableHloExporter
from perfuse_exporters.stablehlo.files import load, sealed
from perfuse_interpreters.stablehlo import OfFiles, StableHloProgram
from perfuse_interpreters.stablehlo import prepared as bound_program

pytestmark = pytest.mark.export

jax = import_jax()
Arrays = dict[str, Any]
Find = Callable[..., Component]
Make = Callable[..., tuple[Component, Path]]

SIZES = {
    "batch": 2,
    "sequence": 7,
    "latent_height": 6,
    "latent_width": 5,  # odd: halved and enlarged again by other than two
    "height": 8,
    "width": 12,
}
#: A weight of the smallest UNet, by its name in the component's module.
BIAS = "model.conv_out.bias"


@pytest.fixture(scope="module")
def find(checkpoint: Callable[[str], Path]) -> Find:
    """``find("sdxl", "unet")``: a component with every size fixed."""

    def find(kind: str, name: str, **changes: Any) -> Component:
        found = Checkpoint.open(checkpoint(kind)).component(name)
        static = {dim: SIZES[dim] for dim in found.spec.signature.dims}
        return dataclasses.replace(found, **{"static": static, **changes})

    return find


@pytest.fixture(scope="module")
def make(find: Find, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``make("tiny", "unet", precision="bfloat16")``: an export, made once."""
    made: dict[str, tuple[Component, Path]] = {}

    def export(kind: str, name: str, **changes: Any) -> tuple[Component, Path]:
        key = json.dumps([kind, name, changes], sort_keys=True)
        if key not in made:
            component = find(kind, name, **changes)
            folder = tmp_path_factory.mktemp(name)
            made[key] = component, StableHloExporter().export(component, folder)
        return made[key]

    return export


def prepared(component: Component, path: Path) -> StableHloProgram:
    device = jax.local_devices()[0]
    weights = partial(OfFiles, path)
    return StableHloProgram(component, weights, device=device, name="cpu", optimization="0")


def arrays(component: Component, seed: int = 0) -> Arrays:
    """Inputs of the component's size; timesteps have fractions and differ within the batch."""
    random = np.random.default_rng(seed)
    made: Arrays = {}
    for tensor in component.signature.inputs:
        if tensor.dtype == "int64":
            made[tensor.name] = random.integers(0, 18, tensor.shape)
        elif tensor.name == "timestep":
            made[tensor.name] = np.linspace(946.421, 12.9, int(tensor.shape[0]), dtype=np.float32)
        else:
            made[tensor.name] = random.standard_normal(tensor.shape, dtype=np.float32)
    return made


def reference(component: Component, given: Mapping[str, Any]) -> Arrays:
    plain = dataclasses.replace(component, options={})
    target = Target(backend="torch", device="cpu")
    return host().backend("torch").prepare(plain, target, ArtifactStore.default())(**given)


def distance(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The largest difference of any output, relative to the output's largest value."""
    assert found.keys() == wanted.keys()
    return max(
        float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max())
        for name in found
    )


# Whole components


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("words", "unet"),
        ("words", "text_encoder"),
        ("words", "vae_decoder"),
        ("sdxl", "text_encoder_2"),
    ],
)
def test_agrees_with_the_reference(kind: str, name: str, make: Make) -> None:
    component, path = make(kind, name)
    given = arrays(component)
    found = prepared(component, path)(**given)
    assert distance(found, reference(component, given)) < 5e-6
    assert all(array.dtype == np.float32 for array in found.values())


def test_another_checkpoint_in_the_graph_of_the_first(
    find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers, without capturing anything, and without a copy on the disk."""
    store = ArtifactStore(tmp_path)
    first = find("tiny", "unet")
    second, given = with_other_weights(first), arrays(first)

    def run(component: Component) -> Arrays:
        device = jax.local_devices()[0]
        program = bound_program(component, store, device=device, name="cpu", optimization="0")
        return program(**given)

    assert distance(run(first), reference(first, given)) < 5e-6
    monkeypatch.setattr(StableHloExporter, "export_graph", None)
    monkeypatch.setattr(StableHloExporter, "export", None)
    before = set(tmp_path.iterdir())
    assert distance(run(second), reference(second, given)) < 5e-6
    assert distance(run(first), reference(first, given)) < 5e-6
    assert set(tmp_path.iterdir()) == before
    folder = tmp_path / "written"
    folder.mkdir()
    filled(second, "stablehlo", store, folder, done=0, total=None)
    assert distance(prepared(second, folder / "model.stablehlo")(**given), run(second)) == 0


def test_precisions(make: Make) -> None:
    """Stored and computed in half precision; float32 where arrays go in and out."""
    exact = reference(make("tiny", "unet")[0], arrays(make("tiny", "unet")[0]))
    for precision, low, high in (("float16", 1e-5, 5e-3), ("bfloat16", 1e-4, 4e-2)):
        component, path = make("tiny", "unet", precision=precision)
        loaded = load(path)
        weights = {name: str(aval.dtype) for name, aval in loaded.weights.items()}
        assert weights.pop("table_0") == "float32"  # the frequencies of timesteps
        assert set(weights.values()) == {precision}
        assert {str(aval.dtype) for aval in loaded.inputs.values()} == {"float32"}
        program = prepared(component, path)
        found = program(**arrays(component))
        assert low < distance(found, exact) < high
        assert found["out_sample"].dtype == np.float32
        assert program.report().precision == precision


def test_in_the_operators_of_neurons_compiler(make: Make) -> None:
    """Attention, argmax and enlargement in other words, with the same result."""
    component, path = make("words", "text_encoder", options={"operators": "neuron"})
    given = arrays(component)
    assert distance(prepared(component, path)(**given), reference(component, given)) < 5e-6
    plain = load(make("words", "text_encoder")[1]).exported.mlir_module()
    wanted = load(path).exported.mlir_module()
    assert "@argmax" in plain
    assert "@argmax" not in wanted


def test_what_is_written(make: Make) -> None:
    component, path = make("tiny", "unet")
    loaded = load(path)
    assert component.build is not None
    module = dict(component.build().named_parameters())
    assert loaded.weights.keys() == {*module, "table_0"}  # the frequencies of timesteps
    for name, array in loaded.tensors():
        if name == "table_0":
            continue
        assert (array.array == module[name].detach().numpy()).all()
    assert loaded.exported.platforms == ("cpu", "cuda", "rocm", "tpu")
    assert loaded.details == {
        "component": "unet",
        "precision": "float32",
        "auto_cast": "none",
        "auto_cast_type": "bf16",
        "operators": "core",
    }
    # No weight is in the program, and nothing of the machine that exported it.
    assert path.stat().st_size < 60_000
    assert str(Path.home()).encode() not in path.read_bytes()
    assert __file__.encode() not in path.read_bytes()


def test_weights_are_replaced_without_another_program(make: Make, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    component, path = make("tiny", "unet")
    copy = Path(shutil.copytree(path.parent, tmp_path / "copy")) / path.name
    weights = load_file(copy.with_name("model.safetensors"))
    save_file({**weights, BIAS: weights[BIAS] + 1}, copy.parent / "new")
    (copy.parent / "new").rename(copy.with_name("model.safetensors"))
    given = arrays(component)
    before = prepared(component, path)(**given)["out_sample"]
    assert np.allclose(prepared(component, copy)(**given)["out_sample"], before + 1, atol=1e-5)


def test_in_64_bits_it_is_the_same(make: Make, tmp_path: Path) -> None:
    component, path = make("words", "text_encoder")
    given = arrays(component)
    wanted = prepared(component, path)(**given)
    with settings(jax_enable_x64=True):
        found = prepared(component, path)(**given)
        again = StableHloExporter().export(component, tmp_path)
    assert distance(found, wanted) == 0
    assert again.read_bytes() == path.read_bytes()


# Casts


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        for parameter in self.linear.parameters():
            generator = torch.Generator().manual_seed(0)
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.linear(sample).exp(),)


def of_module(
    build: Callable[[], nn.Module], *shapes: tuple[int, ...], **changes: Any
) -> Component:
    inputs = tuple(
        TensorSpec(name=f"x{i}", dtype="float", shape=shape) for i, shape in enumerate(shapes)
    )
    outputs = (TensorSpec(name="out", dtype="float", shape=shapes[0]),)
    spec = ComponentSpec(
        name="part",
        class_name="Part",
        folder=".",
        config={},
        signature=Signature(inputs=inputs, outputs=outputs),
    )
    return Component(spec=spec, build=lambda: build().eval(), **changes)


@pytest.mark.parametrize(
    ("options", "operand", "result"),
    [
        ({}, torch.float32, torch.float32),
        ({"auto_cast": "matmult"}, torch.bfloat16, torch.float32),
        ({"auto_cast": "matmult", "auto_cast_type": "fp16"}, torch.float16, torch.float32),
        ({"auto_cast": "all"}, torch.bfloat16, torch.bfloat16),
    ],
)
def test_casts_are_those_of_neurons_compiler(
    options: Mapping[str, str], operand: torch.dtype, result: torch.dtype, tmp_path: Path
) -> None:
    """A product's operands are rounded, its sums are float32; ``all`` rounds every value."""
    component = of_module(Product, (3, 64), options=options)
    given = {"x0": np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32) / 8}
    path = StableHloExporter().export(component, tmp_path)
    found = prepared(component, path)(**given)["out"]
    linear = component.build().linear  # type: ignore[misc, union-attr]
    bias = linear.bias.to(result).double()
    sums = torch.tensor(given["x0"]).to(operand).double() @ linear.weight.to(operand).double().T
    wanted = (sums + bias).to(result).double().exp().to(result).double()
    # Between float32's rounding and what leaving one cast out would make.
    limit = 2e-6 if result == torch.float32 else 1e-2
    assert np.abs(found / wanted.detach().numpy() - 1).max() < limit
    assert (found != torch.tensor(found).bfloat16().float().numpy()).any() == (
        result == torch.float32
    )


def test_casts_that_cannot_be_computed(find: Find, tmp_path: Path) -> None:
    def export(precision: str = "float32", **options: str) -> None:
        component = find("tiny", "unet", precision=precision, options=options)
        exported(component, "stablehlo", ArtifactStore(tmp_path))

    with pytest.raises(InputError, match="no TF32, and how Neuron rounds"):
        export(auto_cast="matmult", auto_cast_type="tf32")
    with pytest.raises(InputError, match="FP8 is not known here"):
        export(auto_cast="matmult", auto_cast_type="fp8_e4m3")
    with pytest.raises(InputError, match="it takes none, matmult, all"):
        export(auto_cast="matmul")
    with pytest.raises(InputError, match="it has auto_cast, auto_cast_type, operators"):
        export(palettize="6")
    with pytest.raises(InputError, match="it casts float32"):
        export("bfloat16", auto_cast="matmult")
    assert not list(tmp_path.rglob("model.*"))


# What it refuses


class Turned(nn.Module):
    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.fft.fft(sample.float()).real.to(sample.dtype),)


class Wide(nn.Module):
    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (sample.double().add(1).to(sample.dtype),)


@pytest.mark.parametrize(
    ("module", "operator", "reason"),
    [
        (Turned, "aten._fft_r2c.default", "complex64"),
        (Wide, "aten._to_copy.default", "float64"),
        (lambda: nn.ConvTranspose1d(4, 4, 3, padding=1), "aten.convolution.default", "transposed"),
        (lambda: nn.AvgPool2d(2, ceil_mode=True), "aten.avg_pool2d.default", "beyond the picture"),
        (
            lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False),
            "aten.avg_pool2d.default",
            "leave zeros",
        ),
        (lambda: Erased(), "aten.cumsum.default", "no lowering"),
    ],
)
def test_what_cannot_be_lowered_is_named(
    module: Callable[[], nn.Module], operator: str, reason: str, tmp_path: Path
) -> None:
    def build() -> nn.Module:
        return Tupled(module())

    component = of_module(build, (2, 4, 8))
    found = StableHloExporter().unsupported(capture(component), component)
    assert reason in found[operator]
    with pytest.raises(ExportError, match=rf"part \(Part\).*{operator}.*{reason}"):
        StableHloExporter().export(component, tmp_path)


class Tupled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        found = self.module(sample)
        return found if isinstance(found, tuple) else (found,)


class Erased(nn.Module):
    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (sample.cumsum(0),)


def test_the_line_of_the_model_is_named(tmp_path: Path) -> None:
    component = of_module(Erased, (2, 4))
    line = Erased.forward.__code__.co_firstlineno + 1
    with pytest.raises(
        ExportError, match=rf"exporters/stablehlo/test_stablehlo\.py:{line} cannot be"
    ):
        StableHloExporter().export(component, tmp_path)


def test_a_graph_of_any_size_is_examined(find: Find) -> None:
    component = find("tiny", "unet", static={})
    assert StableHloExporter().unsupported(capture(component), component) == {}


def test_open_sizes(find: Find, tmp_path: Path) -> None:
    for changes in ({"static": {"batch": 1}}, {"sizes": ({"height": 8}, {"height": 16})}):
        component = find("tiny", "unet", **{"static": {}, **changes})
        with pytest.raises(ExportError, match="--height H --width W --batch B"):
            StableHloExporter().export(component, tmp_path)


# What a program refuses


def test_arrays_that_do_not_fit(make: Make) -> None:
    component, path = make("tiny", "unet")
    program, given = prepared(component, path), arrays(component)
    with pytest.raises(InputError, match="was exported for batch 2"):
        program(**{name: array[:1] for name, array in given.items()})
    with pytest.raises(InputError, match="missing: timestep"):
        program(sample=given["sample"])
    program.close()
    program.close()
    with pytest.raises(ExecutionError, match="Prepare it again"):
        program(**given)


def test_ids(make: Make) -> None:
    """Whole numbers of 32 bits; one that is not in the table gives no number, not another's."""
    component, path = make("words", "text_encoder")
    program, ids = prepared(component, path), arrays(component)["input_ids"]
    assert distance(program(input_ids=ids.astype(np.int32)), program(input_ids=ids)) == 0
    with pytest.raises(InputError, match="32 bits"):
        program(input_ids=ids + (1 << 32))
    with pytest.raises(InputError, match="whole numbers"):
        program(input_ids=ids + 0.5)
    for odd in (-1, 100_000):
        outside = ids.copy()
        outside[1, -1] = odd
        found = program(input_ids=outside)["last_hidden_state"]
        assert np.isnan(found[1, -1]).all()
        assert np.isfinite(found[0]).all()


# What a reader refuses


@pytest.fixture
def stored(make: Make, tmp_path: Path) -> Path:
    """A copy of an export, to be damaged."""
    _, path = make("tiny", "unet")
    return Path(shutil.copytree(path.parent, tmp_path / "stored")) / path.name


@pytest.mark.parametrize("file", ["model.stablehlo", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "short", "foreign"])
def test_damaged_files(stored: Path, file: str, damage: str) -> None:
    path = stored.with_name(file)
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            {"empty": b"", "cut": data[:-1], "short": data[:20], "foreign": b"PK\3\4" * 99}[damage]
        )
    with pytest.raises(ArtifactError, match=rf"{file}.*Export the model again"):
        load(stored)


def test_a_changed_bit(stored: Path) -> None:
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        load(stored)


def test_another_tools_program(stored: Path) -> None:
    for data in (b"not a program", bytes(stored.read_bytes()[:-4000])):
        stored.write_bytes(sealed(data))
        with pytest.raises(ArtifactError, match=rf"read by jax {jax.__version__}"):
            load(stored)
    given = jax.ShapeDtypeStruct((2,), "float32")
    unnamed = jax.export.export(jax.jit(lambda x, y: x + y))(given, given)
    stored.write_bytes(sealed(unnamed.serialize()))
    with pytest.raises(ArtifactError, match="named weights and inputs"):
        load(stored)


def test_a_program_that_calls_out(stored: Path) -> None:
    """Calls are how StableHLO reaches code that is not in it."""

    def solve(weights: Arrays, inputs: Arrays) -> Arrays:
        return {"out": jax.numpy.linalg.cholesky(inputs["x"])}

    given = jax.ShapeDtypeStruct((2, 2), "float32")
    program = jax.export.export(jax.jit(solve))({}, {"x": given})
    stored.write_bytes(sealed(program.serialize()))
    with pytest.raises(ArtifactError, match="calls lapack_spotrf_ffi, which is code outside it"):
        load(stored)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({BIAS: None}, f"missing: {BIAS}"),
        ({"other": np.zeros(3, np.float32)}, "unknown: other"),
        ({BIAS: np.zeros(4, np.float32)}, rf"{BIAS} as F32 \(4,\)"),
        ({BIAS: np.zeros(3, np.float16)}, rf"{BIAS} as F16 \(3,\)"),
    ],
)
def test_weights_that_do_not_fit(change: Arrays, reason: str, stored: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = stored.with_name("model.safetensors")
    weights = {name: array.copy() for name, array in load_file(file).items()} | change
    save_file({name: array for name, array in weights.items() if array is not None}, file)
    with pytest.raises(ArtifactError, match=reason):
        load(stored)


def test_offsets_that_leave_the_file(stored: Path) -> None:
    file = stored.with_name("model.safetensors")
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[BIAS]["data_offsets"][1] += 1 << 40
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(ArtifactError, match="cannot be read as a .safetensors file"):
        load(stored)


def test_the_program_of_another_component(make: Make, find: Find) -> None:
    _, path = make("tiny", "unet")
    larger = find("tiny", "unet", static={"batch": 2, "height": 16, "width": 12})
    for component in (larger, make("words", "vae_decoder")[0]):
        with pytest.raises(ArtifactError, match="another component or size"):
            prepared(component, path)


# The process


def test_neither_torch_nor_a_trace(make: Make) -> None:
    """Reading and running needs no torch, draws no random number and prints nothing."""
    component, path = make("tiny", "unet")
    code = f"""
import sys
sys.modules["torch"] = None
import json, numpy as np
from pathlib import Path
from perfuse import Component
from perfuse.spec import ComponentSpec
from perfuse.sources.plain import from_plain
np.random.seed(7)
from perfuse_exporters.stablehlo.engine import import_jax
from perfuse_interpreters.stablehlo import OfFiles, StableHloProgram
spec = from_plain(ComponentSpec, json.loads({json.dumps(json.dumps(to_plain(component.spec)))}))
component = Component(spec=spec, static={dict(component.static)!r})
jax = import_jax()
weights = lambda one: OfFiles(Path({str(path)!r}), one)
program = StableHloProgram(component, weights, device=jax.devices()[0], name="cpu")
given = {{t.name: np.ones(t.shape, np.float32) for t in component.signature.inputs}}
assert np.isfinite(program(**given)["out_sample"]).all()
assert jax.config.jax_compilation_cache_dir is None and not jax.config.jax_enable_x64
assert np.random.rand() == np.random.RandomState(7).rand()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
