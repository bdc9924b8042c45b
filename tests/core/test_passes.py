"""Rewritten graphs compute the same numbers, with operations that engines have."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from perfuse.passes import neutral

Function = Callable[..., Tensor]


class Rotary(nn.Module):
    """Rotary embedding as Qwen-Image and Z-Image write it: complex tables, complex products."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(6.0).outer(torch.tensor([1.0, 0.1]))
        self.table = torch.polar(torch.ones_like(angles), angles)
        self.register_buffer("other", torch.polar(torch.ones_like(angles), -angles))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.table, [1, 1], dim=1)
        table = torch.cat([parts[1], parts[0] * 2], dim=-1)[torch.arange(6)]
        table = (table * self.other.conj()).unsqueeze(0)
        turned = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * table
        angle = torch.polar(turned.real, turned.imag)
        return torch.view_as_real(turned + angle).flatten(2).type_as(x)


class Calling(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def under_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = x.float() @ x.float().mT
        with torch.autocast("cpu", enabled=False):
            z = y.sum(-1)
    return y * z.unsqueeze(-1)


def grouped(x: Tensor) -> Tensor:
    q, k = x.reshape(2, 4, 3, 2), x.reshape(2, 12, 2)[:, :6].reshape(2, 2, 3, 2)
    return nn.functional.scaled_dot_product_attention(q, k, k * 2, enable_gqa=True)


def truth(x: Tensor) -> Tensor:
    mask, other = x > 0, x > 1
    a = mask.masked_fill(other, False) | mask.masked_fill(other.mT.mT, True)
    return torch.where(a, other, mask).float() + torch.where(mask, x, -x)


def itself_alone(x: Tensor) -> Tensor:
    """Lets a part of the rows see themselves alone, as perturbed attention of SD3 does."""
    mask = torch.zeros(x.shape[1], x.shape[1])
    mask[:2, :2] = float("-inf")
    mask[:2, :2].fill_diagonal_(0)
    return (x.mT @ x + mask).softmax(-1)


def written_widely(x: Tensor) -> Tensor:
    """Writes a column into several, and a row into a part, as CogVideoX does its positions."""
    table = torch.zeros(2, *x.shape)
    table[:, 1:].copy_(x[1:, :1])
    table[0].copy_(x)
    return table


def frequencies(x: Tensor) -> Tensor:
    """What a timestep's embedding is made of."""
    each = torch.exp(torch.arange(6, dtype=torch.float32) * -0.7).to(torch.float64).float()
    return torch.cat([(x[..., None] * each).sin(), torch.zeros(*x.shape, 6)], dim=-1)


def targets(program: ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


CASES: dict[str, tuple[nn.Module, tuple[int, ...], set[str]]] = {
    "complex": (Rotary(), (2, 6, 4), {"aten.view_as_complex.default", "aten.polar.default"}),
    "squeeze": (Calling(lambda x: x.squeeze(1) + x.squeeze((0, 1))), (1, 4, 6), set()),
    "booleans": (Calling(truth), (3, 4), {"aten.masked_fill.Scalar"}),
    "autocast": (Calling(under_autocast), (3, 4), {"wrap_with_autocast"}),
    "dropout": (nn.Dropout(0.0).train(), (3, 4), {"aten.dropout.default"}),
    "grouped": (Calling(grouped), (2, 4, 6), set()),
    "frequencies": (Calling(frequencies), (3, 4), {"aten.exp.default", "aten.arange.default"}),
    "copies": (Calling(written_widely), (3, 4), set()),
    "diagonal": (Calling(itself_alone), (3, 4), {"aten.fill_diagonal_.default"}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rewritten_graph_computes_the_same(name: str) -> None:
    module, shape, gone = CASES[name]
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = module(sample)
        program = torch.export.export(module, (sample,), strict=False)
        before = targets(program)
        assert gone <= before
        program = neutral(program)
        torch.testing.assert_close(program.module()(sample), wanted)
    assert not gone & targets(program)
    assert all(not held.is_complex() for held in program.constants.values())
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not any(isinstance(one, Tensor) and one.is_complex() for one in values)


def test_what_is_copied_has_the_shape_of_its_place() -> None:
    program = neutral(torch.export.export(Calling(written_widely), (torch.ones(3, 4),)))
    copies = [node for node in program.graph.nodes if str(node.target) == "aten.copy_.default"]
    shapes = [[one.meta["val"].shape for one in node.args[:2]] for node in copies]
    assert len(shapes) == 2 and all(place == written for place, written in shapes)


def test_an_axis_of_any_size_is_not_squeezed() -> None:
    module = Calling(lambda x: x.squeeze(1).squeeze(0) * 2)
    sample = torch.ones(1, 4, 6)
    program = torch.export.export(module, (sample,), dynamic_shapes=(({1: Dim("n")},),))
    program = neutral(program)
    assert program.module()(torch.ones(1, 5, 6)).shape == (5, 6)
    squeezes = [n for n in program.graph.nodes if "squeeze" in str(n.target)]
    assert len(squeezes) == 1


def test_a_graph_of_ours_stays_as_it_is() -> None:
    program = torch.export.export(nn.Sequential(nn.Linear(2, 3), nn.SiLU()), (torch.ones(1, 2),))
    before = str(program.graph)
    assert str(neutral(program).graph) == before


def written(x: Tensor) -> Tensor:
    """A table that is written into after it was computed."""
    table = torch.arange(3.0).exp()
    part = table[1:]
    table.mul_(2)
    return x * table + part.sum()


def test_a_table_that_is_written_into_stays() -> None:
    program = torch.export.export(Calling(written), (torch.ones(2, 3),))
    before = str(program.graph)
    program = neutral(program)
    assert str(program.graph) == before
    torch.testing.assert_close(program.module()(torch.ones(2, 3)), written(torch.ones(2, 3)))


def test_a_graph_with_a_table_is_lowered_further() -> None:
    """Exporters decompose graphs and take the constants out of them."""
    module, sample = Calling(frequencies), torch.linspace(0, 999, 12).reshape(3, 4)
    program = neutral(torch.export.export(module, (sample,), dynamic_shapes=(({0: Dim("n")},),)))
    (table,) = program.constants.values()
    assert torch.equal(table, torch.exp(torch.arange(6, dtype=torch.float32) * -0.7))
    lowered = program.run_decompositions()
    assert torch.equal(lowered.module()(sample[:2]), module(sample[:2]))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.view_as_complex(x),
        lambda x: torch.view_as_complex(x).sqrt().real,
        lambda x: (torch.view_as_complex(x) + 1).imag,
    ],
)
def test_what_has_no_rule_stays_for_exporters_to_name(function: Function) -> None:
    program = torch.export.export(Calling(function), (torch.ones(3, 2),))
    before = str(program.graph)
    assert str(neutral(program).graph) == before
