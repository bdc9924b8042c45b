"""Modules of other libraries: what they compute that ours do not, on ONNX Runtime and OpenVINO."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse import ArtifactStore
from perfuse.backend import Component
from perfuse.errors import ExecutionError, ExportError
from perfuse.spec import ComponentSpec, Signature, TensorSpec

pytestmark = pytest.mark.export
Tensor = Any


class Precise(torch.nn.Module):
    """Angles in float64, as Flux's rotary embedding has them."""

    def forward(self, x: Tensor) -> Tensor:
        rate = 1.0 / 10000.0 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
        angle = torch.outer(x.double().flatten(), rate)
        return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


class Divided(torch.nn.Module):
    """Linear attention's guard against a sum of nothing, as Sana's autoencoder has it."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.relu(-x.abs())
        return kept / (kept + 1e-15)


class Signed(torch.nn.Module):
    """An operation that OpenVINO's frontend for PyTorch has no rule for, and ONNX has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return torch.signbit(x).float().sum() + self.linear(x)


def same(module: torch.nn.Module, target: str, folder: Path, **given: Any) -> Any:
    """A module's answer on a target, which must be PyTorch's."""
    sample = torch.linspace(-1, 1, 12).reshape(4, 3)
    with torch.no_grad():
        wanted = module(sample)
        run = perfuse.accelerate(module, target, store=ArtifactStore(folder), strict=True, **given)
        found = run(sample)
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3 if given else 1e-5)
        torch.testing.assert_close(run(sample), found)
    (row,) = run.perfuse.report()
    assert (row.calls, row.torch_calls, row.graphs) == (2, 0, 1)
    assert module.training  # as it was
    return run


@pytest.mark.parametrize("kind", [Precise, Divided])
@pytest.mark.parametrize(
    "target", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_an_engine_computes_it(kind: type[torch.nn.Module], target: str, tmp_path: Path) -> None:
    pytest.importorskip(target)
    same(kind(), target, tmp_path)


class Largest(torch.nn.Module):
    """Answers with whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_whole_numbers(target: str, tmp_path: Path) -> None:
    pytest.importorskip(target)
    same(Largest(), target, tmp_path)


class Normed(torch.nn.Module):
    """Layers that make their weights before each call, as the autoencoder of Stable Audio has them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.utils.weight_norm(torch.nn.Linear(3, 5))
        with torch.no_grad():
            self.linear.weight_g.mul_(1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated")
@pytest.mark.parametrize(
    "target", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_weights_made_before_each_call(target: str, tmp_path: Path) -> None:
    pytest.importorskip(target)
    run = same(Normed(), target, tmp_path)
    x = torch.ones(2, 3)
    with torch.no_grad():
        before = run(x)
        run.linear.weight_g.mul_(3)
        after = run(x)
        assert (run.perfuse.report()[0].torch_calls, run.linear.weight_g.shape) == (0, (5, 1))
        run.perfuse.restore()
        torch.testing.assert_close(after, run(x))
    assert not torch.allclose(after, before)


class Positioned(torch.nn.Module):
    """Makes its positions in forward and writes them through ``data``, as CogVideoX does."""

    def forward(self, x: Tensor) -> Tensor:
        positions = x.new_zeros(len(x), 3, requires_grad=False)
        positions.data[1:].copy_(torch.arange(len(x) - 1.0)[:, None].sin())
        return x + positions


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_what_is_written_through_data(target: str, tmp_path: Path) -> None:
    pytest.importorskip(target)
    same(Positioned(), target, tmp_path)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "target", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_a_size_that_a_graph_for_several_fails_at(
    first: bool, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a graph of its own, whether the engine fails when the other graph is made or later."""
    from perfuse.bridge import stand_in

    run, sizes = stand_in._run, (3,) if first else (5,)

    def failing(graph: Any, call: Any) -> Any:
        if graph.several and len(call.tensors[0]) in sizes:
            raise ExecutionError("its shape is invalid")
        return run(graph, call)

    monkeypatch.setattr(stand_in, "_run", failing)
    module = torch.nn.Linear(3, 2).eval()
    pytest.importorskip(target)
    accelerated = perfuse.accelerate(module, target, store=ArtifactStore(tmp_path))
    for size in (2, 3, 5, 5, 4, 3):
        x = torch.randn(size, 3)
        with torch.no_grad():
            torch.testing.assert_close(accelerated(x), x @ module.weight.T + module.bias)
    (row,) = accelerated.perfuse.report()
    # For 2 alone, for several, and for the one that those fail at.
    assert (row.calls, row.torch_calls, row.graphs) == (6, 0, 3)


class Turned(torch.nn.Module):
    """Takes its rotary embedding as complex numbers, as Lumina's transformer does."""

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns.to(torch.complex64)).flatten(-2)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_complex_arguments(target: str, tmp_path: Path) -> None:
    pytest.importorskip(target)
    module, x = Turned(), torch.linspace(-1, 1, 24).reshape(4, 6)
    run = perfuse.accelerate(Turned(), target, store=ArtifactStore(tmp_path), strict=True)
    for angle in (0.3, 2.0):
        turns = torch.polar(torch.full((4, 3), 1.5), torch.full((4, 3), angle))
        torch.testing.assert_close(run(x, turns), module(x, turns))
    (row,) = run.perfuse.report()
    assert (row.calls, row.graphs) == (2, 1)


class Shifted(torch.nn.Module):
    """Leaves the first of its numbers out, as Stable Audio's transformer does: to the end, however far."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:] + x.transpose(0, 1)[1:, :3].sum()


@pytest.mark.parametrize("kind", [Precise, Shifted])
def test_on_openvino_again_from_the_cache(kind: type[torch.nn.Module], tmp_path: Path) -> None:
    """What its cache changes in silence: float64, and whole numbers that need more than 32 bits."""
    pytest.importorskip("openvino")
    for _ in range(2):
        same(kind(), "openvino", tmp_path)


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("float16", marks=pytest.mark.exhaustive)]
)
def test_openvino_reads_through_onnx_what_it_refuses(precision: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    same(Signed(), "openvino", tmp_path, precision=precision)
    (file,) = tmp_path.rglob("openvino_model.xml")
    model = openvino.Core().read_model(file)
    assert model.get_rt_info(["perfuse", "frontend"]).astype(str) == "onnx"
    # The weights are there once, in their precision, and nothing of ONNX stays.
    size = 4000 * {"float32": 4, "float16": 2}[precision]
    assert size <= file.with_suffix(".bin").stat().st_size < size * 1.2
    assert not list(tmp_path.rglob("*.onnx*"))


def test_float64_in_a_model_of_ours_is_refused(tmp_path: Path) -> None:
    from perfuse_exporters.onnx.exporter import OnnxExporter

    def signature(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float", shape=shape)

    spec = ComponentSpec(
        name="angles",
        class_name="Precise",
        folder="angles",
        config={},
        signature=Signature(inputs=(signature("x", 4, 3),), outputs=(signature("y", 12, 8),)),
    )
    with pytest.raises(ExportError, match="DOUBLE"):
        OnnxExporter().export(Component(spec=spec, build=Precise), tmp_path)


@pytest.mark.parametrize(
    "target", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_hidden_states_that_transformers_records(target: str, tmp_path: Path) -> None:
    pytest.importorskip(target)
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(num_hidden_layers=2, vocab_size=9, **sizes)
    module = transformers.CLIPTextModel(config).eval()
    words = torch.tensor([[1, 2, 3, 8]])
    with torch.no_grad():
        wanted = module(words, output_hidden_states=True)
        perfuse.accelerate(module, target, store=ArtifactStore(tmp_path), strict=True)
        for _ in range(2):
            found = module(words, output_hidden_states=True)
            assert len(found.hidden_states) == 3
            for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    (row,) = module.perfuse.report()
    assert (row.calls, row.torch_calls, row.graphs) == (2, 0, 1)
