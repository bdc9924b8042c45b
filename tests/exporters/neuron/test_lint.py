"""What the documentation of Neuron's compiler speaks against is found, with the line that caused it."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

import perfuse.models.clip_text.network
from perfuse import DiffusionPipeline
from perfuse.backend import Component
from perfuse.capture import capture
from perfuse.run.sizes import shapes_of
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse_exporters.neuron.exporter import NeuronExporter
from perfuse_exporters.neuron.lint import Finding, lint
from perfuse_exporters.neuron.operators import DOCUMENTED, LOWERED, SOURCES

pytestmark = pytest.mark.export


def _part(module: nn.Module, *, dtype: str = "float", static: bool = True) -> Component:
    """A module that takes one [batch, 6]."""
    tensor = TensorSpec(name="x", dtype=dtype, shape=("batch", 6))
    spec = ComponentSpec(
        name="part",
        class_name="Module",
        folder="part",
        config={},
        signature=Signature(inputs=(tensor,), outputs=(tensor,)),
    )
    return Component(spec=spec, static={"batch": 3} if static else {}, build=module.eval)


def _of(module: nn.Module, **settings: Any) -> list[Finding]:
    component = _part(module, **settings)
    return lint(capture(component), component)


class _Sorts(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.sort(dim=-1).values + 1,)


class _Complex(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.view_as_real(torch.fft.fft(x)),)


class _Double(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return ((x.double() * 3).float(),)


class _Counts(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x[x > 0] * 2,)


class _Multiplies(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x @ x.T,)


class _Large(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.new_ones(3, 400, 1000, 1000) * 2,)


class _Any(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return ((x > 0).any(dim=-1),)


class _Fine(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.nn.functional.silu(x).softmax(dim=-1),)


@pytest.mark.parametrize(
    ("module", "kind", "what", "says"),
    [
        (_Sorts, "operator", "aten.sort", "Sort"),
        (_Complex, "type", "aten._fft_r2c", "NCC_EVRF004"),
        (_Double, "type", "aten.mul", "float64"),
        (_Counts, "dynamic", "aten.index", "NCC_EMOD025"),
        (_Large, "size", "aten.mul", "4.5 GiB"),
        (_Any, "operator", "aten.any", "Reduce by Or"),
    ],
)
def test_what_stops_the_compiler_is_named_with_its_line(
    module: type[nn.Module], kind: str, what: str, says: str
) -> None:
    everything = _of(module())
    found = [one for one in everything if one.kind == kind and one.what == what]
    assert len(found) == 1, everything
    line = inspect.getsourcelines(module.forward)[1] + 1
    assert found[0].where == f"test_lint.py:{line}"
    assert says in found[0].reason
    assert found[0].stops


def test_integers_run_in_fewer_bits_and_do_not_stop() -> None:
    products = _of(_Multiplies(), dtype="int64")
    assert [(one.kind, one.what, one.stops) for one in products] == [("int64", "aten.mm", False)]
    assert "2^24" in products[0].reason


def test_open_sizes_are_named_as_the_signature_names_them() -> None:
    (found,) = _of(_Fine(), static=False)
    assert (found.kind, found.what, found.where) == ("dynamic", "x", "an input of part")
    assert found.reason.startswith("batch must be fixed")
    assert _of(_Fine()) == []


def _fixed(folder: Path) -> dict[str, Component]:
    """Every component at the size that an export of the checkpoint would have."""
    pipe = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    each = [pipe.fixed_dims(*pipe.spec.default_size, None)]
    shapes = shapes_of(pipe.spec, each, fixed=True)
    return {name: pipe.component(name, static=static) for name, (static, _) in shapes.items()}


@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
def test_our_models_have_nothing_against_them(checkpoint: Callable[[str], Path], name: str) -> None:
    component = _fixed(checkpoint("words"))[name]
    assert lint(capture(component), component) == []


def test_a_text_encoder_has_integers_and_nothing_else(checkpoint: Callable[[str], Path]) -> None:
    """Of 64 bits: indices and positions, far below 2^31. Each with our line and the library's."""
    component = _fixed(checkpoint("words"))["text_encoder"]
    found = lint(capture(component), component)
    assert {one.kind for one in found} == {"int64"}
    names = {"aten.embedding", "aten.arange", "aten.add", "aten.le", "aten.index"}
    assert {one.what for one in found} == names
    lines = inspect.getsource(perfuse.models.clip_text.network).splitlines()
    for one in found:
        ours, _, theirs = one.where.partition(" ")
        path, _, line = ours.partition(":")
        assert path == "perfuse/models/clip_text/network.py"
        assert "self.model(input_ids=input_ids" in lines[int(line) - 1]
        assert theirs.startswith("(transformers/models/clip/modeling_clip.py:")


def test_the_exporter_tells_what_stops_and_where() -> None:
    component = _part(_Sorts())
    told = NeuronExporter().unsupported(capture(component), component)
    line = inspect.getsourcelines(_Sorts.forward)[1] + 1
    assert list(told) == [f"aten.sort at test_lint.py:{line}"]


def test_every_row_of_the_table_names_a_page() -> None:
    assert set(DOCUMENTED.values()) <= set(SOURCES)
    assert all(source.url.startswith("https://") and source.date for source in SOURCES.values())
    named = {xla for row in LOWERED.values() for xla in row}
    assert {xla for xla in named if xla not in DOCUMENTED} == {
        "Reduce by Or",
        "Reduce by And",
        "Reduce by a comparison of pairs",
        "Sort",
    }
