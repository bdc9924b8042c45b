"""ATen operators in JAX: one function each, with the operator's own arguments.

What PyTorch's kernels promise is kept: half-precision operands are computed with in float32 and
rounded once, products add up in float32, and statistics are float32. Dtypes are written out in
every place, so that neither JAX's promotion rules nor its ``jax_enable_x64`` can change a result.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["COMPUTED", "MOVED", "PRODUCTS"]

Operand = Any
Cast = Callable[[Operand], Operand]

#: A product's operands keep every bit; XLA would round float32 on a GPU or a TPU.
_EXACT = lax.Precision.HIGHEST


# Products, which --auto-cast=matmult affects. Each takes the cast of its operands first.


def _dot(cast: Cast, left: Operand, right: Operand, contract: Any, batch: Any = ((), ())) -> Any:
    return lax.dot_general(
        cast(left),
        cast(right),
        (contract, batch),
        precision=_EXACT,
        preferred_element_type=jnp.float32,
    )


def _linear(cast: Cast, x: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    product = _dot(cast, x, weight, ((x.ndim - 1,), (1,)))
    return product if bias is None else product + bias


def _mm(cast: Cast, left: Operand, right: Operand) -> Operand:
    return _dot(cast, left, right, ((1,), (0,)))


def _bmm(cast: Cast, left: Operand, right: Operand) -> Operand:
    return _dot(cast, left, right, ((2,), (1,)), ((0,), (0,)))


def _addmm(
    cast: Cast, added: Operand, left: Operand, right: Operand, *, beta: float = 1, alpha: float = 1
) -> Operand:
    return beta * added + alpha * _mm(cast, left, right)


def _convolution(
    cast: Cast,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Operand:
    """A convolution over any number of axes; transposed ones are refused before this is called."""
    space = "DHW"[-len(stride) :]
    product = lax.conv_general_dilated(
        cast(x),
        cast(weight),
        window_strides=stride,
        padding=[(n, n) for n in padding],
        rhs_dilation=dilation,
        dimension_numbers=(f"NC{space}", f"OI{space}", f"NC{space}"),
        feature_group_count=groups,
        precision=_EXACT,
        preferred_element_type=jnp.float32,
    )
    return product if bias is None else product + bias.reshape(-1, *[1] * len(space))


def _attention(
    cast: Cast,
    query: Operand,
    key: Operand,
    value: Operand,
    mask: Operand | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Operand:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) over [..., tokens, channels].

    A row that a mask leaves nothing is not a number, and the host says so.
    """
    axes = tuple(range(query.ndim - 2))
    last = query.ndim - 1
    scale = scale if scale is not None else 1 / math.sqrt(query.shape[-1])
    # The product of a score and the scale may be fused, rounded otherwise, once into the search for the
    # largest score and once into the exponentials; large scores then differ from their own maximum, and
    # the weights are 0 / 0. A scaled query rounds nothing in half precision if the scale is a power of two.
    before = query.dtype == jnp.float32 or math.frexp(scale)[0] == 0.5
    scores = _dot(cast, query * scale if before else query, key, ((last,), (last,)), (axes, axes))
    if not before:
        scores = scores * scale
    if is_causal:
        rows, columns = scores.shape[-2:]
        mask = jnp.tri(rows, columns, dtype=jnp.bool_)
    if mask is not None and mask.dtype == jnp.bool_:
        scores = jnp.where(mask, scores, -jnp.inf)
    elif mask is not None:
        scores = scores + mask
    # Half-precision values are weighted with half-precision weights, as PyTorch's kernels do it.
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return _dot(cast, weights, value, ((last,), (last - 1,)), (axes, axes))


#: Operators computed in float32 for any operand dtype, and then rounded once.
PRODUCTS: Mapping[str, Callable[..., Operand]] = {
    "aten.addmm.default": _addmm,
    "aten.bmm.default": _bmm,
    "aten.convolution.default": _convolution,
    "aten.linear.default": _linear,
    "aten.mm.default": _mm,
    "aten.scaled_dot_product_attention.default": _attention,
}


# Arithmetic on each element, and along axes. Operands in half precision arrive as float32.


def _clamp(x: Operand, low: float | None = None, high: float | None = None) -> Operand:
    return jnp.clip(x, low, high)


def _div(left: Operand, right: Operand) -> Operand:
    return jnp.asarray(left, jnp.float32) / right


def _gelu(x: Operand, *, approximate: str = "none") -> Operand:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _softmax(x: Operand, axis: int, half_to_float: bool) -> Operand:
    return jax.nn.softmax(x, axis=axis)


def _mean(x: Operand, axes: Sequence[int] | None, keepdim: bool = False) -> Operand:
    return jnp.mean(x, axis=_axes(axes), keepdims=keepdim)


def _sum(x: Operand, axes: Sequence[int] | None, keepdim: bool = False) -> Operand:
    return jnp.sum(x, axis=_axes(axes), keepdims=keepdim)


def _amax(x: Operand, axes: Sequence[int] = (), keepdim: bool = False) -> Operand:
    return jnp.max(x, axis=_axes(axes), keepdims=keepdim)


def _amin(x: Operand, axes: Sequence[int] = (), keepdim: bool = False) -> Operand:
    return jnp.min(x, axis=_axes(axes), keepdims=keepdim)


def _axes(axes: Sequence[int] | None) -> tuple[int, ...] | None:
    return tuple(axes) if axes else None


def _argmax(x: Operand, axis: int | None = None, keepdim: bool = False) -> Operand:
    return jnp.argmax(x, axis=axis, keepdims=keepdim)


def _any(x: Operand, axis: int, keepdim: bool = False) -> Operand:
    return jnp.any(x, axis=axis, keepdims=keepdim)


def _normalised(x: Operand, axes: tuple[int, ...], eps: float) -> tuple[Operand, Operand, Operand]:
    """The sample, its mean and the reciprocal of its deviation; two passes, as it is exact."""
    mean = jnp.mean(x, axis=axes, keepdims=True)
    rstd = lax.rsqrt(jnp.mean(jnp.square(x - mean), axis=axes, keepdims=True) + eps)
    return (x - mean) * rstd, mean, rstd


def _layer_norm(
    x: Operand,
    shape: Sequence[int],
    weight: Operand | None,
    bias: Operand | None,
    eps: float,
) -> tuple[Operand, Operand, Operand]:
    """Ba, Kiros and Hinton 2016, eq. 4."""
    out, mean, rstd = _normalised(x, tuple(range(x.ndim - len(shape), x.ndim)), eps)
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias), mean, rstd


def _group_norm(
    x: Operand,
    weight: Operand | None,
    bias: Operand | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> tuple[Operand, Operand, Operand]:
    """Wu and He 2018, eq. 1."""
    rows = x.reshape(batch, groups, channels // groups, pixels)
    out, mean, rstd = _normalised(rows, (2, 3), eps)
    out = out.reshape(x.shape)
    each = (channels, *[1] * (x.ndim - 2))
    out = out if weight is None else out * weight.reshape(each)
    out = out if bias is None else out + bias.reshape(each)
    return out, mean.reshape(batch, groups), rstd.reshape(batch, groups)


def _avg_pool2d(
    x: Operand,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Operand:
    """The mean of each window; zeros around the picture count, as they do in PyTorch."""
    window, stride, padding = _pair(window), _pair(stride or window), _pair(padding)
    edges = ((0, 0), (0, 0), *((n, n) for n in padding))
    total = lax.reduce_window(x, 0.0, lax.add, (1, 1, *window), (1, 1, *stride), edges)
    return total / math.prod(window)


def _pair(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sizes) * 2 if len(sizes) == 1 else tuple(sizes)


#: Half-precision operands arrive as float32, and the results are rounded once.
COMPUTED: Mapping[str, Callable[..., Any]] = {
    "aten._softmax.default": _softmax,
    "aten.abs.default": jnp.abs,
    "aten.add.Scalar": lambda left, right, alpha=1: left + alpha * right,
    "aten.add.Tensor": lambda left, right, alpha=1: left + alpha * right,
    "aten.amax.default": _amax,
    "aten.amin.default": _amin,
    "aten.any.dim": _any,
    "aten.argmax.default": _argmax,
    "aten.avg_pool2d.default": _avg_pool2d,
    "aten.bitwise_and.Tensor": jnp.bitwise_and,
    "aten.bitwise_not.default": jnp.bitwise_not,
    "aten.clamp.default": _clamp,
    "aten.cos.default": jnp.cos,
    "aten.div.Scalar": _div,
    "aten.div.Tensor": _div,
    "aten.eq.Scalar": jnp.equal,
    "aten.eq.Tensor": jnp.equal,
    "aten.erf.default": lax.erf,
    "aten.exp.default": jnp.exp,
    "aten.ge.Scalar": jnp.greater_equal,
    "aten.ge.Tensor": jnp.greater_equal,
    "aten.gelu.default": _gelu,
    "aten.gt.Scalar": jnp.greater,
    "aten.gt.Tensor": jnp.greater,
    "aten.le.Scalar": jnp.less_equal,
    "aten.le.Tensor": jnp.less_equal,
    "aten.log.default": jnp.log,
    "aten.log1p.default": jnp.log1p,
    "aten.logical_and.default": jnp.logical_and,
    "aten.logical_not.default": jnp.logical_not,
    "aten.lt.Scalar": jnp.less,
    "aten.lt.Tensor": jnp.less,
    "aten.maximum.default": jnp.maximum,
    "aten.mean.dim": _mean,
    "aten.minimum.default": jnp.minimum,
    "aten.mul.Scalar": jnp.multiply,
    "aten.mul.Tensor": jnp.multiply,
    "aten.native_group_norm.default": _group_norm,
    "aten.native_layer_norm.default": _layer_norm,
    "aten.ne.Scalar": jnp.not_equal,
    "aten.ne.Tensor": jnp.not_equal,
    "aten.neg.default": jnp.negative,
    "aten.pow.Tensor_Scalar": jnp.power,
    "aten.reciprocal.default": jnp.reciprocal,
    "aten.relu.default": jax.nn.relu,
    "aten.rsqrt.default": lax.rsqrt,
    "aten.sigmoid.default": jax.nn.sigmoid,
    "aten.silu.default": jax.nn.silu,
    "aten.sin.default": jnp.sin,
    "aten.sqrt.default": jnp.sqrt,
    "aten.sub.Scalar": lambda left, right, alpha=1: left - alpha * right,
    "aten.sub.Tensor": lambda left, right, alpha=1: left - alpha * right,
    "aten.sum.dim_IntList": _sum,
    "aten.tanh.default": jnp.tanh,
    "aten.where.self": jnp.where,
}


# What moves values and does not change them. The last argument of those that make tensors is their
# dtype, which the lowering fills in.


def _arange(start: float, end: float, step: float = 1, *, dtype: Any) -> Operand:
    return jnp.arange(start, end, step, dtype=dtype)


def _full(shape: Sequence[int], value: float, *, dtype: Any) -> Operand:
    return jnp.full(tuple(shape), value, dtype=dtype)


def _full_like(x: Operand, value: float, *, dtype: Any) -> Operand:
    return jnp.full(x.shape, value, dtype=dtype)


def _scalar(value: float, *, dtype: Any) -> Operand:
    return jnp.asarray(value, dtype=dtype)


def _to_copy(x: Operand, *, dtype: Any) -> Operand:
    return x.astype(dtype)


def _reshape(x: Operand, shape: Sequence[int]) -> Operand:
    return x.reshape(tuple(shape))


def _expand(x: Operand, shape: Sequence[int], *, implicit: bool = False) -> Operand:
    new = len(shape) - x.ndim
    sizes = [x.shape[axis - new] if size == -1 else size for axis, size in enumerate(shape)]
    return jnp.broadcast_to(x, sizes)


def _slice(
    x: Operand, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Operand:
    return lax.slice_in_dim(x, *slice(start, end).indices(x.shape[axis])[:2], step, axis=axis)


def _split(x: Operand, sizes: Sequence[int], axis: int = 0) -> list[Operand]:
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [
        lax.slice_in_dim(x, end - n, end, axis=axis) for end, n in zip(ends, sizes, strict=True)
    ]


def _embedding(weight: Operand, ids: Operand, padding_idx: int = -1, *unused: bool) -> Operand:
    """Rows of a table. An id out of range gives NaN, which the host reports as an error."""
    return weight.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def _index(x: Operand, indices: Sequence[Operand | None]) -> Operand:
    return x[tuple(slice(None) if index is None else index for index in indices)]


def _pad(x: Operand, edges: Sequence[int], value: float = 0) -> Operand:
    """The edges are given from the last axis on, as pairs."""
    pairs = [(edges[i], edges[i + 1], 0) for i in range(0, len(edges), 2)]
    config = [(0, 0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def _upsample_nearest2d(
    x: Operand, size: Sequence[int] | None, scale: Sequence[float] | None = None
) -> Operand:
    """Nearest-neighbour resize; source coordinates are rounded down."""
    for axis in (2, 3):
        old = x.shape[axis]
        new = size[axis - 2] if size else int(old * (scale or ())[axis - 2])
        if new % old == 0:
            x = jnp.repeat(x, new // old, axis=axis)
        else:
            step = np.float32(1 / scale[axis - 2] if scale else old / new)
            places = (np.arange(new, dtype=np.float32) * step).astype(np.int32)
            x = jnp.take(x, np.minimum(places, old - 1), axis=axis)
    return x


MOVED: Mapping[str, Callable[..., Any]] = {
    "aten._to_copy.default": _to_copy,
    "aten.alias.default": lambda x: x,
    "aten.arange.start_step": _arange,
    "aten.cat.default": lambda parts, axis=0: jnp.concatenate(parts, axis=axis),
    "aten.clone.default": lambda x: x,
    "aten.constant_pad_nd.default": _pad,
    "aten.embedding.default": _embedding,
    "aten.expand.default": _expand,
    "aten.full.default": _full,
    "aten.full_like.default": _full_like,
    "aten.index.Tensor": _index,
    # As in a table, a place out of range gives NaN.
    "aten.index_select.default": lambda x, axis, places: jnp.take(x, places, axis, mode="fill"),
    "aten.permute.default": jnp.transpose,
    "aten.scalar_tensor.default": _scalar,
    "aten.select.int": lambda x, axis, index: lax.index_in_dim(x, index, axis, keepdims=False),
    "aten.slice.Tensor": _slice,
    "aten.split_with_sizes.default": _split,
    "aten.squeeze.dims": lambda x, axes: lax.squeeze(
        x, [axis for axis in axes if x.shape[axis] == 1]
    ),
    "aten.unsqueeze.default": lambda x, axis: jnp.expand_dims(x, axis),
    "aten.upsample_nearest2d.vec": _upsample_nearest2d,
    "aten.view.default": _reshape,
}
