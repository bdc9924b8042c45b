"""Every operation of the interpreter's table, from a saved program, against PyTorch's own words for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.backends.interpreters.mil.programs import normal, save_program
from torch.nn import functional

from perfuse_interpreters.mil.interpreter import MilPredictor
from perfuse_interpreters.mil.operations import OPERATIONS

_RANDOM = np.random.default_rng(7)
_KERNEL = _RANDOM.standard_normal((4, 3, 3, 2)).astype(np.float32)
_MATRIX = _RANDOM.standard_normal((7, 5)).astype(np.float32)
_CHANNELS = [_RANDOM.standard_normal(6).astype(np.float32) for _ in range(3)]
_LAST = [_RANDOM.standard_normal((4, 5)).astype(np.float32) for _ in range(2)]
_SEVEN = _RANDOM.standard_normal(7).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """An operation with arguments, and what it means: both take the same names of values."""

    build: Callable[..., Any]
    meaning: Callable[..., Any]
    #: The version of iOS that has it.
    since: int = 16


def _binary(name: str, meaning: Callable[..., Any]) -> dict[str, Case]:
    return {
        name: Case(lambda mb, v: getattr(mb, name)(x=v.a, y=v.b), lambda v: meaning(v.a, v.b)),
        f"{name} of integers": Case(
            lambda mb, v: getattr(mb, name)(x=v.i, y=v.j), lambda v: meaning(v.i, v.j)
        ),
    }


def _unary(name: str, meaning: Callable[..., Any], of: str = "a") -> dict[str, Case]:
    return {
        name: Case(
            lambda mb, v: getattr(mb, name)(x=getattr(v, of)), lambda v: meaning(getattr(v, of))
        )
    }


CASES: dict[str, Case] = {
    **_binary("add", torch.add),
    **_binary("sub", torch.sub),
    **_binary("mul", torch.mul),
    "real_div": Case(lambda mb, v: mb.real_div(x=v.a, y=v.p), lambda v: v.a / v.p),
    "floor_div": Case(
        lambda mb, v: mb.floor_div(x=v.i, y=v.j), lambda v: torch.floor(v.i / v.j).int()
    ),
    "mod": Case(
        lambda mb, v: mb.mod(x=v.i, y=v.j), lambda v: (v.i - v.j * torch.floor(v.i / v.j)).int()
    ),
    "pow": Case(lambda mb, v: mb.pow(x=v.p, y=v.b), lambda v: v.p**v.b),
    **_binary("maximum", torch.maximum),
    **_binary("minimum", torch.minimum),
    **_binary("equal", torch.eq),
    **_binary("not_equal", torch.ne),
    **_binary("greater", torch.gt),
    **_binary("greater_equal", torch.ge),
    **_binary("less", torch.lt),
    **_binary("less_equal", torch.le),
    "logical_and": Case(lambda mb, v: mb.logical_and(x=v.f, y=v.g), lambda v: v.f & v.g),
    "logical_or": Case(lambda mb, v: mb.logical_or(x=v.f, y=v.g), lambda v: v.f | v.g),
    "logical_not": Case(lambda mb, v: mb.logical_not(x=v.f), lambda v: ~v.f),
    **_unary("abs", torch.abs),
    **_unary("cos", torch.cos),
    **_unary("sin", torch.sin),
    **_unary("exp", torch.exp),
    **_unary("erf", torch.erf),
    **_unary("floor", torch.floor),
    **_unary("sqrt", torch.sqrt, "p"),
    **_unary("square", torch.square),
    **_unary("relu", torch.relu),
    **_unary("sigmoid", torch.sigmoid),
    **_unary("silu", functional.silu),
    **_unary("tanh", torch.tanh),
    **_unary("identity", lambda x: x),
    "log": Case(lambda mb, v: mb.log(x=v.p, epsilon=v.of(0.5)), lambda v: torch.log(v.p + 0.5)),
    "rsqrt": Case(
        lambda mb, v: mb.rsqrt(x=v.p, epsilon=v.of(0.25)), lambda v: (v.p + 0.25) ** -0.5
    ),
    "rsqrt without epsilon": Case(lambda mb, v: mb.rsqrt(x=v.p), lambda v: v.p**-0.5),
    "inverse": Case(
        lambda mb, v: mb.inverse(x=v.p, epsilon=v.of(0.125)), lambda v: 1 / (v.p + 0.125)
    ),
    "clip": Case(
        lambda mb, v: mb.clip(x=v.a, alpha=v.of(-0.5), beta=v.of(0.25)),
        lambda v: v.a.clamp(-0.5, 0.25),
    ),
    "gelu": Case(lambda mb, v: mb.gelu(x=v.a), lambda v: v.a / 2 * (1 + torch.erf(v.a / 2**0.5))),
    "gelu by tanh": Case(
        lambda mb, v: mb.gelu(x=v.a, mode="TANH_APPROXIMATION"),
        lambda v: v.a / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (v.a + 0.044715 * v.a**3))),
    ),
    "gelu by sigmoid": Case(
        lambda mb, v: mb.gelu(x=v.a, mode="SIGMOID_APPROXIMATION"),
        lambda v: v.a * torch.sigmoid(1.702 * v.a),
    ),
    "softmax": Case(lambda mb, v: mb.softmax(x=v.a, axis=1), lambda v: torch.softmax(v.a, 1)),
    "cast": Case(lambda mb, v: mb.cast(x=v.a, dtype="int32"), lambda v: v.a.trunc().int()),
    "cast to halves": Case(lambda mb, v: mb.cast(x=v.i, dtype="fp16"), lambda v: v.i.half()),
    "cast to short": Case(
        lambda mb, v: mb.cast(x=mb.cast(x=v.i, dtype="int16"), dtype="int32"),
        lambda v: v.i,
        since=18,
    ),
    "select": Case(
        lambda mb, v: mb.select(cond=mb.greater(x=v.a, y=v.b), a=v.a, b=v.p),
        lambda v: torch.where(v.a > v.b, v.a, v.p),
    ),
    # Sums
    "reduce_mean": Case(
        lambda mb, v: mb.reduce_mean(x=v.a, axes=[-1, 1], keep_dims=True),
        lambda v: v.a.mean((1, 3), keepdim=True),
    ),
    "reduce_mean of all": Case(
        lambda mb, v: mb.expand_dims(x=mb.reduce_mean(x=v.a), axes=[0]),
        lambda v: v.a.mean().reshape(1),
    ),
    "reduce_sum": Case(
        lambda mb, v: mb.reduce_sum(x=v.a, axes=[2], keep_dims=False), lambda v: v.a.sum(2)
    ),
    "reduce_max": Case(
        lambda mb, v: mb.reduce_max(x=v.a, axes=[0, 2], keep_dims=False), lambda v: v.a.amax((0, 2))
    ),
    "reduce_argmax": Case(
        lambda mb, v: mb.reduce_argmax(x=v.a, axis=1, keep_dims=True),
        lambda v: v.a.argmax(1, keepdim=True).int(),
    ),
    "linear": Case(
        lambda mb, v: mb.linear(x=v.flat, weight=v.of(_MATRIX), bias=v.of(_SEVEN)),
        lambda v: v.flat @ v.of(_MATRIX).T + v.of(_SEVEN),
    ),
    "linear without bias": Case(
        lambda mb, v: mb.linear(x=v.flat, weight=v.of(_MATRIX)), lambda v: v.flat @ v.of(_MATRIX).T
    ),
    "matmul": Case(
        lambda mb, v: mb.matmul(x=v.a, y=v.b, transpose_y=True),
        lambda v: torch.einsum("abij,abkj->abik", v.a, v.b),
    ),
    "matmul of a transposed": Case(
        lambda mb, v: mb.matmul(x=v.a, y=v.b, transpose_x=True),
        lambda v: torch.einsum("abji,abjk->abik", v.a, v.b),
    ),
    "einsum": Case(
        lambda mb, v: mb.einsum(
            values=(v.a, mb.transpose(x=v.b, perm=[0, 3, 2, 1])), equation="nchw,nwhu->nchu"
        ),
        lambda v: torch.einsum("nchw,nuhw->nchu", v.a, v.b),
    ),
    "scaled_dot_product_attention": Case(
        lambda mb, v: mb.scaled_dot_product_attention(
            query=v.a, key=v.b, value=v.p, attn_mask=v.of(_LAST[0][:, :4])
        ),
        lambda v: torch.softmax(v.a @ v.b.mT / 5**0.5 + v.of(_LAST[0][:, :4]), -1) @ v.p,
        since=18,
    ),
    "conv": Case(
        lambda mb, v: mb.conv(
            x=v.a,
            weight=v.of(_KERNEL),
            bias=v.of(_SEVEN[:4]),
            strides=[1, 2],
            pad_type="custom",
            pad=[1, 0, 2, 1],
            dilations=[1, 2],
            groups=2,
        ),
        lambda v: functional.conv2d(
            functional.pad(v.a, (2, 1, 1, 0)),
            v.of(_KERNEL),
            v.of(_SEVEN[:4]),
            stride=(1, 2),
            dilation=(1, 2),
            groups=2,
        ),
    ),
    "conv of a line": Case(
        lambda mb, v: mb.conv(x=v.lines, weight=v.of(_KERNEL[:, :2, 0, :]), pad_type="valid"),
        lambda v: functional.conv1d(v.lines, v.of(_KERNEL[:, :2, 0, :])),
    ),
    # Norms
    "batch_norm": Case(
        lambda mb, v: mb.batch_norm(
            x=v.a,
            mean=v.of(_CHANNELS[0]),
            variance=v.of(_CHANNELS[1] ** 2),
            gamma=v.of(_CHANNELS[2]),
            beta=v.of(_CHANNELS[1]),
            epsilon=v.of(0.125),
        ),
        lambda v: (
            (v.a - v.channel(0))
            * v.channel(2)
            / torch.sqrt(v.of(_CHANNELS[1] ** 2).reshape(6, 1, 1) + 0.125)
            + v.channel(1)
        ),
    ),
    "instance_norm": Case(
        lambda mb, v: mb.instance_norm(
            x=v.a, gamma=v.of(_CHANNELS[0]), beta=v.of(_CHANNELS[1]), epsilon=v.of(0.125)
        ),
        lambda v: (
            (v.a - v.a.mean((2, 3), keepdim=True))
            / torch.sqrt(v.a.var((2, 3), keepdim=True, correction=0) + 0.125)
            * v.channel(0)
            + v.channel(1)
        ),
    ),
    "layer_norm": Case(
        lambda mb, v: mb.layer_norm(
            x=v.a, axes=[2, -1], gamma=v.of(_LAST[0]), beta=v.of(_LAST[1]), epsilon=v.of(0.125)
        ),
        lambda v: (
            (v.a - v.a.mean((2, 3), keepdim=True))
            / torch.sqrt(v.a.var((2, 3), keepdim=True, correction=0) + 0.125)
            * v.of(_LAST[0])
            + v.of(_LAST[1])
        ),
    ),
    "layer_norm of channels": Case(
        lambda mb, v: mb.layer_norm(x=v.a, axes=[1], gamma=v.of(_CHANNELS[0]), epsilon=v.of(0.125)),
        lambda v: (
            (v.a - v.a.mean(1, keepdim=True))
            / torch.sqrt(v.a.var(1, keepdim=True, correction=0) + 0.125)
            * v.channel(0)
        ),
    ),
    # Shapes
    "shape": Case(
        lambda mb, v: mb.shape(x=v.a), lambda v: torch.tensor([2, 6, 4, 5], dtype=torch.int32)
    ),
    "reshape": Case(
        lambda mb, v: mb.reshape(x=v.a, shape=[0, -1, 10, 2]), lambda v: v.a.reshape(2, 6, 10, 2)
    ),
    "transpose": Case(
        lambda mb, v: mb.transpose(x=v.a, perm=[0, -1, 1, 2]), lambda v: v.a.permute(0, 3, 1, 2)
    ),
    "expand_dims": Case(
        lambda mb, v: mb.expand_dims(x=v.i, axes=[-1, 1]), lambda v: v.i[:, None, :, None]
    ),
    "squeeze": Case(
        lambda mb, v: mb.squeeze(x=mb.expand_dims(x=v.i, axes=[0, 1]), axes=[1]),
        lambda v: v.i[None],
    ),
    "concat": Case(
        lambda mb, v: mb.concat(values=(v.a, v.b, v.p), axis=-2),
        lambda v: torch.cat((v.a, v.b, v.p), 2),
    ),
    "stack": Case(
        lambda mb, v: mb.stack(values=(v.i, v.j), axis=1), lambda v: torch.stack((v.i, v.j), 1)
    ),
    "split": Case(
        lambda mb, v: mb.split(x=v.a, split_sizes=[1, 2, 3], axis=1)[1], lambda v: v.a[:, 1:3]
    ),
    "split into equals": Case(
        lambda mb, v: mb.split(x=v.a, num_splits=3, axis=1)[2], lambda v: v.a[:, 4:]
    ),
    "tile": Case(lambda mb, v: mb.tile(x=v.i, reps=[2, 3]), lambda v: v.i.repeat(2, 3)),
    "fill": Case(
        lambda mb, v: mb.add(x=v.i, y=mb.fill(shape=mb.shape(x=v.i), value=np.int32(5))),
        lambda v: v.i + 5,
    ),
    "fill_like": Case(
        lambda mb, v: mb.add(x=v.a, y=mb.fill_like(ref_tensor=v.a, value=v.of(0.5))),
        lambda v: v.a + 0.5,
    ),
    "range_1d": Case(
        lambda mb, v: mb.add(x=v.i, y=mb.range_1d(start=2, end=9, step=3)),
        lambda v: v.i + torch.tensor([2, 5, 8], dtype=torch.int32),
    ),
    "pad": Case(
        lambda mb, v: mb.pad(x=v.a, pad=[1, 0, 2, 3], constant_val=v.of(0.5)),
        lambda v: functional.pad(v.a, (2, 3, 1, 0), value=0.5),
    ),
    "pad by reflection": Case(
        lambda mb, v: mb.pad(x=v.a, pad=[1, 2, 3, 1], mode="reflect"),
        lambda v: functional.pad(v.a, (3, 1, 1, 2), mode="reflect"),
    ),
    "pad by replication": Case(
        lambda mb, v: mb.pad(x=v.a, pad=[1, 2, 3, 1], mode="replicate"),
        lambda v: functional.pad(v.a, (3, 1, 1, 2), mode="replicate"),
    ),
    "upsample_nearest_neighbor": Case(
        lambda mb, v: mb.upsample_nearest_neighbor(
            x=v.a, scale_factor_height=2.0, scale_factor_width=3.0
        ),
        lambda v: v.a.repeat_interleave(2, 2).repeat_interleave(3, 3),
    ),
    "pixel_shuffle": Case(
        lambda mb, v: mb.pixel_shuffle(x=v.even, upscale_factor=2),
        lambda v: functional.pixel_shuffle(v.even, 2),
    ),
    "pixel_unshuffle": Case(
        lambda mb, v: mb.pixel_unshuffle(x=v.even, downscale_factor=np.uint32(2)),
        lambda v: functional.pixel_unshuffle(v.even, 2),
    ),
    "upsample_bilinear": Case(
        lambda mb, v: mb.upsample_bilinear(
            x=v.a, scale_factor_height=2.0, scale_factor_width=3.0, align_corners=True
        ),
        lambda v: functional.interpolate(
            v.a, scale_factor=(2.0, 3.0), mode="bilinear", align_corners=True
        ),
    ),
    "avg_pool": Case(
        lambda mb, v: mb.avg_pool(
            x=v.a, kernel_sizes=[2, 3], strides=[1, 2], pad_type="custom", pad=[1, 0, 2, 1]
        ),
        lambda v: functional.avg_pool2d(functional.pad(v.a, (2, 1, 1, 0)), (2, 3), (1, 2)),
    ),
    "slice_by_index": Case(
        lambda mb, v: mb.slice_by_index(
            x=v.a,
            begin=[1, -4, 2, 0],
            end=[0, -1, 9, 5],
            stride=[1, 2, 1, 3],
            begin_mask=[False, False, True, False],
            end_mask=[False, False, False, True],
            squeeze_mask=[True, False, False, False],
        ),
        lambda v: v.a[1, -4:-1:2, :9, ::3],
    ),
    "slice_by_size": Case(
        lambda mb, v: mb.slice_by_size(x=v.a, begin=[0, -3, 1, 0], size=[2, 2, -1, 4]),
        lambda v: v.a[:, 3:5, 1:, :4],
    ),
    "gather": Case(
        lambda mb, v: mb.gather(x=v.a, indices=v.where, axis=-1), lambda v: v.a[..., v.where.long()]
    ),
    "gather_along_axis": Case(
        lambda mb, v: mb.gather_along_axis(x=v.flat, indices=v.where3, axis=1),
        lambda v: v.flat.gather(1, v.where3.long()),
    ),
    "gather_nd": Case(
        lambda mb, v: mb.gather_nd(x=v.a, indices=v.where2),
        lambda v: v.a[v.where2[:, 0].long(), v.where2[:, 1].long()],
    ),
}

#: What the programs take. ``p`` is positive, ``where…`` are indices.
_INPUTS: dict[str, Any] = {
    "a": normal((2, 6, 4, 5), seed=1),
    "b": np.where(_RANDOM.random((2, 6, 4, 5)) < 0.1, normal((2, 6, 4, 5), seed=1), 0.5),
    "p": np.abs(normal((2, 6, 4, 5), seed=2)) + 0.25,
    "even": normal((2, 8, 4, 6), seed=5),
    "flat": normal((2, 24, 5), seed=3),
    "lines": normal((2, 2, 9), seed=4),
    "i": np.array([[-7, 3, 2], [0, 5, -1]], np.int32),
    "j": np.array([[2, 3, -3], [1, -2, -2]], np.int32),
    "where": np.array([[4, 0], [2, 2]], np.int32),
    "where2": np.array([[1, 0], [0, 5], [1, 3]], np.int32),
    "where3": _RANDOM.integers(0, 24, (2, 3, 5)).astype(np.int32),
}
_HALVES = {"fp16": np.float16, "fp32": np.float32}


def _arrays(dtype: str) -> dict[str, Any]:
    return {
        name: array.astype(_HALVES[dtype]) if array.dtype.kind == "f" else array
        for name, array in _INPUTS.items()
    }


def _computed(folder: Path, dtype: str, target: str) -> dict[str, Any]:
    """What the interpreter gives for every case that the target has, from one saved program."""
    arrays = _arrays(dtype)
    cases = {name: case for name, case in CASES.items() if case.since <= int(target[3:])}

    def body(mb: Any, **values: Any) -> Any:
        named = SimpleNamespace(**values, of=lambda value: _HALVES[dtype](value))
        named.f = mb.greater(x=values["i"], y=values["j"])
        named.g = mb.less(x=values["i"], y=np.int32(3))
        for index, case in enumerate(cases.values()):
            found = case.build(mb, named)
            if found.dtype.__name__ == "bool":  # which no program can give
                found = mb.cast(x=found, dtype="int32")
            yield mb.identity(x=found, name=f"case_{index}")

    inputs = {
        name: (array.shape, dtype if array.dtype.kind == "f" else "int32")
        for name, array in arrays.items()
    }
    package = save_program(
        folder / "cases.mlpackage",
        inputs,
        lambda mb, **values: tuple(body(mb, **values)),
        target=target,
    )
    found = MilPredictor(package)(arrays)
    return {name: found[f"case_{index}"] for index, name in enumerate(cases)}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return {
        "fp32": _computed(tmp_path_factory.mktemp("fp32"), "fp32", "iOS16"),
        "fp16": _computed(tmp_path_factory.mktemp("fp16"), "fp16", "iOS18"),
    }


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_an_operation_computes_what_it_means(computed, name, dtype):
    case = CASES[name]
    if name not in computed[dtype]:
        pytest.skip(f"iOS {case.since} has it")
    exact = {
        key: torch.tensor(array.astype(np.float64) if array.dtype.kind == "f" else array)
        for key, array in _arrays(dtype).items()
    }
    values = SimpleNamespace(
        **exact,
        f=exact["i"] > exact["j"],
        g=exact["i"] < 3,
        of=lambda value: torch.tensor(_HALVES[dtype](value)).double(),
    )
    values.channel = lambda index: values.of(_CHANNELS[index]).reshape(6, 1, 1)
    right = case.meaning(values)
    found = torch.tensor(computed[dtype][name])
    assert found.shape == right.shape
    if not right.is_floating_point() or name.startswith("cast"):
        assert torch.equal(found, right.to(found.dtype))
        return
    assert found.dtype == {"fp32": torch.float32, "fp16": torch.float16}[dtype]
    # Sums of some dozens of numbers in float32; a rounding to float16 on top of that.
    near = {"fp32": 1e-5, "fp16": 6e-4}[dtype]
    assert torch.allclose(found.double(), right, rtol=near, atol=near / 10)


def test_every_operation_of_the_table_has_a_case():
    tested = {name.partition(" ")[0] for name in CASES}
    assert tested == set(OPERATIONS)
