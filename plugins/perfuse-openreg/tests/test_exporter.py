"""Lowering: what a captured component becomes, and what cannot be lowered says why."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from perfuse import Component
from perfuse.errors import ExportError
from torch import Tensor, nn

from perfuse_openreg.exporter import OpenRegExporter
from perfuse_openreg.graph import Operation, read

Make = Callable[..., Component]


def operations(path: Path) -> dict[str, Operation]:
    return {operation.operator: operation for operation in read(path).operations}


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_precision_is_that_of_weights_and_results(
    gate: Make, tmp_path: Path, precision: str
) -> None:
    graph = read(OpenRegExporter().export(gate(precision, batch=2), tmp_path))
    assert {value.dtype for value in graph.weights} == {precision}
    assert [value.dtype for value in graph.inputs] == [precision, "float32"]
    made = {one.dtype for op in graph.operations for one in op.results if one is not None}
    assert made == {precision}


def test_one_size_only(gate: Make, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="for any batch; it takes one size.*--batch B"):
        OpenRegExporter().export(gate(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_there_is_not(gate: Make, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="int8; choose one of float32"):
        OpenRegExporter().export(gate("int8", batch=1), tmp_path)


class Odd(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (torch.special.bessel_j0(x) * t[:, None],)


def test_an_operator_that_the_device_does_not_have_is_named(gate: Make, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"gate \(Gate\) uses aten.special_bessel_j0.default"):
        OpenRegExporter().export(gate(module=Odd, batch=1), tmp_path)


class Double(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return ((x.double() * t[:, None]).float(),)


def test_a_type_that_the_device_does_not_have_is_named(gate: Make, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="float64.*its memory holds float32"):
        OpenRegExporter().export(gate(module=Double, batch=2), tmp_path)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8, bias=False)
        self.other = nn.Linear(8, 8, bias=False)
        self.other.weight = self.one.weight
        self.register_buffer("table", torch.arange(16.0).reshape(2, 8)[:, ::2].repeat(1, 2))

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (self.other(self.one(x)) + self.table + t[:, None],)


def test_tied_weights_are_stored_once(gate: Make, tmp_path: Path) -> None:
    graph = read(OpenRegExporter().export(gate(module=Tied, batch=2), tmp_path))
    assert sorted(value.shape for value in graph.weights) == [(2, 8), (8, 8)]


class Several(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        first, _, third = x.split([2, 2, 4], dim=1)
        return (torch.cat([first, third, first * t[:, None]], dim=1),)


def test_what_nothing_reads_is_not_kept(gate: Make, tmp_path: Path) -> None:
    path = OpenRegExporter().export(gate(module=Several, batch=2), tmp_path)
    split = operations(path)["split_with_sizes.default"]
    assert [result is not None for result in split.results] == [True, False, True]


class Same(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (x,)


def test_an_output_that_is_an_input(gate: Make, tmp_path: Path) -> None:
    graph = read(OpenRegExporter().export(gate(module=Same, batch=2), tmp_path))
    assert graph.operations == ()
    assert graph.outputs == ("x",)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        self.calls += 1
        return (x + self.calls + t[:, None],)


def test_a_component_that_changes_itself_is_refused(gate: Make, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="returns y; its graph returns 2 values"):
        OpenRegExporter().export(gate(module=Counts, batch=2), tmp_path)


def test_others_may_read_the_file(gate: Make, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = OpenRegExporter().export(gate(batch=2), tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
