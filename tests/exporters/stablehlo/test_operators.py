"""Each operator of the table against torch's own, in float32 and in half precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("jax")

from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.backend import Component
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse_exporters.stablehlo.engine import import_jax

jax = import_jax()

from perfuse_exporters.stablehlo.graph import Casting, decomposed, lowered, weights_of

pytestmark = pytest.mark.export

Function = Callable[..., Tensor]
Tensors = tuple[Tensor, ...]
Arrays = dict[str, np.ndarray[Any, Any]]


class Parts(nn.Module):
    """Several functions, each with inputs of its own, captured and compiled at once."""

    def __init__(self, functions: Sequence[tuple[Function, int]]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = iter(inputs)
        return tuple(
            function(*(next(given) for _ in range(count))) for function, count in self.functions
        )


def lower(functions: Mapping[str, Function], inputs: Mapping[str, Tensors]) -> Arrays:
    """What the lowering computes for each function."""
    flat = tuple(x for name in functions for x in inputs[name])
    names = [f"x{i}" for i in range(len(flat))]
    component = Component(
        spec=ComponentSpec(
            name="parts",
            class_name="Parts",
            folder=".",
            config={},
            signature=Signature(
                inputs=tuple(TensorSpec(name=n, dtype="float", shape=()) for n in names),
                outputs=tuple(TensorSpec(name=n, dtype="float", shape=()) for n in functions),
            ),
        )
    )
    parts = Parts([(function, len(inputs[name])) for name, function in functions.items()])
    program = decomposed(torch.export.export(parts, flat))
    weights = {name: tensor.numpy() for name, tensor in weights_of(program).items()}
    arrays = {
        name: x.float().numpy() if x.is_floating_point() else x.int().numpy()
        for name, x in zip(names, flat, strict=True)
    }
    found = jax.jit(lowered(program, component, Casting()))(weights, arrays)
    return {name: np.asarray(array) for name, array in found.items()}


CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
FUNCTIONS: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "attention": (F.scaled_dot_product_attention, ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))),
    "attention-causal": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
        ((2, 5, 4), (2, 5, 4), (2, 5, 4)),
    ),
    "attention-bool": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=CAUSAL.to(q.device)),
        ((2, 5, 4), (2, 5, 4), (2, 5, 4)),
    ),
    "attention-added": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        ((2, 5, 4), (2, 5, 4), (2, 5, 4), (1, 5, 5)),
    ),
    "pool": (lambda x: F.avg_pool2d(x, 2, stride=2), ((2, 3, 5, 6),)),
    "pool-padded": (lambda x: F.avg_pool2d(x, 3, 2, 1), ((2, 3, 5, 6),)),
    "nearest-scale": (lambda x: F.interpolate(x, scale_factor=2.0), ((2, 3, 4, 5),)),
    "nearest-size": (lambda x: F.interpolate(x, size=(7, 13)), ((2, 3, 4, 5),)),
    "nearest-third": (lambda x: F.interpolate(x, scale_factor=1.3), ((2, 3, 9, 10),)),
    "group-norm": (lambda x: F.group_norm(x + 3, 2), ((2, 4, 5, 3),)),
    "layer-norm": (lambda x: F.layer_norm(x + 3, (5, 3)), ((2, 4, 5, 3),)),
    "convolution": (
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=(1, 2), dilation=2, groups=2),
        ((2, 4, 9, 8), (6, 2, 3, 3), (6,)),
    ),
    "convolution-1d": (lambda x, w: F.conv1d(x, w, padding=1), ((2, 4, 9), (6, 4, 3))),
    "einsum": (lambda q, k: torch.einsum("bchq,bkhc->bkhq", q, k), ((2, 4, 1, 6), (2, 5, 1, 4))),
    "addmm": (lambda a, b, c: torch.addmm(a, b, c, beta=0.5, alpha=2), ((3,), (2, 4), (4, 3))),
    "gelu": (lambda x: F.gelu(x) + F.gelu(x, approximate="tanh"), ((3, 40),)),
    "mish": (F.mish, ((3, 40),)),
    "silu": (F.silu, ((3, 40),)),
    "pad": (lambda x: F.pad(x, (0, 1, 2, 0), value=0.5), ((2, 3, 4),)),
    "pad-cut": (lambda x: F.pad(x, (-1, 1)), ((2, 3, 4),)),
    "slices": (lambda x: x[:, 1:-1:2, ..., 2] + x[:, ::3, 0, :1], ((2, 5, 3, 4),)),
    "fourier": (lambda x: torch.cat([torch.log(x * x).sin(), x.cos()], -1) * 2 - 1, ((3, 7),)),
    "axes": (
        lambda x: x.sum(1, keepdim=True) + x.mean((0, 2)).amax() * x.amin((0, 2)).amin() - 1,
        ((2, 3, 5),),
    ),
    "powers": (lambda x: (x**2).sqrt() * (x.abs() + 1).rsqrt() / (1 + x**4).reciprocal(), ((9,),)),
    "choices": (
        lambda x, y: torch.where((x > y) & ~(x > 1), x, y.clamp(-1, 0.5)),
        ((9,), (4, 9)),
    ),
    "extremes": (lambda x, y: torch.maximum(x, y) - torch.minimum(x, -y).relu(), ((9,), (4, 9))),
    "expand": (lambda x: x[:, None].expand(-1, 3, 2, -1).chunk(3, 1)[2].squeeze(1), ((2, 2, 4),)),
}


def inputs_of(dtype: torch.dtype) -> dict[str, Tensors]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
        for name, (_, shapes) in FUNCTIONS.items()
    }


@pytest.fixture(scope="module")
def computed() -> dict[torch.dtype, Arrays]:
    functions = {name: function for name, (function, _) in FUNCTIONS.items()}
    return {dtype: lower(functions, inputs_of(dtype)) for dtype in LIMITS}


#: float32 is as exact as torch's; bfloat16, of 8 bits, is rounded where torch's kernels round: once
#: or twice in a function.
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 2.1 * 2**-8}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators(name: str, dtype: torch.dtype, computed: dict[torch.dtype, Arrays]) -> None:
    function, _ = FUNCTIONS[name]
    wanted = function(*(x.double() for x in inputs_of(dtype)[name])).numpy()
    found = computed[dtype][name]
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < LIMITS[dtype] * np.abs(wanted).max()


def test_whole_numbers() -> None:
    """Positions and ids: torch's int64 is the program's int32."""

    def last(ids: Tensor, table: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]) * 2
        rows = F.embedding(ids.clamp(0, 6), table)
        end = (ids == 5).int().argmax(dim=-1)
        columns = table.index_select(1, ids[0].clamp(0, 2)).index_select(0, end)
        others = (ids != 4).sum() + (ids[0] != ids[1]).sum()
        return rows[torch.arange(2), end] + columns + (places / 4).sum() + others

    ids = torch.tensor([[1, 5, 2], [4, 4, 5]])
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    found = lower({"last": last}, {"last": (ids, table)})["last"]
    assert np.allclose(found, last(ids, table).numpy())


@pytest.mark.parametrize("width", [16, 24])
def test_attention_between_large_numbers(width: int) -> None:
    """Each score is the largest of its row, however XLA fuses it."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 2, width, generator=generator)
    inputs = (1e6 * query, 1e6 * key, value)
    found = lower({"attention": F.scaled_dot_product_attention}, {"attention": inputs})
    expected = F.scaled_dot_product_attention(*inputs)
    assert np.abs(found["attention"] - expected.numpy()).max() <= 1e-5
