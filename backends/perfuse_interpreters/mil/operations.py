"""MIL's operations: a table of name to function, each computing one operation in PyTorch.

What each means is read from coremltools' documentation of MIL (``converters/mil/mil/ops/defs``, iOS 15
to iOS 18). A float16 operand is widened to float32, computed with, and the result is rounded to
float16 once, to infinity where it is too large: as exact as an engine can be that rounds after
every operation. An operation that only moves elements, or chooses among them, does not widen.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from perfuse.errors import ArtifactError, UnsupportedError

__all__ = ["OPERATIONS"]

_TABLE: dict[str, Callable[..., Any]] = {}
#: MIL's name of an operation to its function, which takes MIL's parameters by name.
OPERATIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(_TABLE)

#: Types that are computed in a wider type, which holds each of their values exactly.
_WIDER = {torch.float16: torch.float32, torch.uint16: torch.int32}
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _moves(function: _Function) -> _Function:
    """Put an operation into the table that takes its operands as they are."""
    _TABLE[function.__name__.strip("_")] = function
    return function


def _computes(function: _Function) -> _Function:
    """Put an operation into the table whose result is of its first number's type."""

    @wraps(function)
    def rounded(**operands: Any) -> Any:
        numbers = [value for value in _flat(operands) if value.dtype != torch.bool]
        own = numbers[0].dtype if numbers else torch.bool
        result = function(**{name: _widened(value) for name, value in operands.items()})
        # The result of a comparison is boolean and is not rounded.
        return result.to(own) if result.dtype == _WIDER.get(own) else result

    _TABLE[function.__name__.strip("_")] = rounded
    return function


def _flat(operands: Mapping[str, Any]) -> list[Tensor]:
    values = [
        part
        for value in operands.values()
        for part in (value if isinstance(value, tuple) else (value,))
    ]
    return [value for value in values if isinstance(value, Tensor)]


def _widened(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_widened(part) for part in value)
    return value.to(_WIDER.get(value.dtype, value.dtype)) if isinstance(value, Tensor) else value


def _ints(value: Tensor) -> list[int]:
    """A constant of integers, or of truth values, as Python has them."""
    found: list[int] = value.reshape(-1).tolist()
    return found


def _int(value: Tensor | int) -> int:
    return int(value)


def _refused(parameter: str, value: object) -> UnsupportedError:
    return UnsupportedError(
        f"the interpreter does not know {parameter}={value}. Export it otherwise, or run it on "
        "Core ML."
    )


# Element by element


@_computes
def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


@_computes
def sub(x: Tensor, y: Tensor) -> Tensor:
    return x - y


@_computes
def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


@_computes
def real_div(x: Tensor, y: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise _refused("x", x.dtype)  # MIL does not say how integers are rounded
    return x / y


@_computes
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.floor_divide(x, y)


@_computes
def mod(x: Tensor, y: Tensor) -> Tensor:
    return torch.remainder(x, y)


@_computes
def _pow(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y)


@_computes
def maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


@_computes
def minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(x, y)


@_computes
def equal(x: Tensor, y: Tensor) -> Tensor:
    return x == y


@_computes
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    return x != y


@_computes
def greater(x: Tensor, y: Tensor) -> Tensor:
    return x > y


@_computes
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    return x >= y


@_computes
def less(x: Tensor, y: Tensor) -> Tensor:
    return x < y


@_computes
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    return x <= y


@_computes
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_and(x, y)


@_computes
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_or(x, y)


@_computes
def logical_not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


@_computes
def _abs(x: Tensor) -> Tensor:
    return x.abs()


@_computes
def cos(x: Tensor) -> Tensor:
    return x.cos()


@_computes
def sin(x: Tensor) -> Tensor:
    return x.sin()


@_computes
def exp(x: Tensor) -> Tensor:
    return x.exp()


@_computes
def log(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return (x + (1e-45 if epsilon is None else epsilon)).log()


@_computes
def erf(x: Tensor) -> Tensor:
    return x.erf()


@_computes
def floor(x: Tensor) -> Tensor:
    return x.floor()


@_computes
def sqrt(x: Tensor) -> Tensor:
    return x.sqrt()


@_computes
def rsqrt(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return (x + (1e-12 if epsilon is None else epsilon)).rsqrt()


@_computes
def inverse(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return (x + (1e-4 if epsilon is None else epsilon)).reciprocal()


@_computes
def square(x: Tensor) -> Tensor:
    return x * x


@_computes
def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.clamp(x, alpha, beta)


@_computes
def relu(x: Tensor) -> Tensor:
    return functional.relu(x)


@_computes
def sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid()


@_computes
def silu(x: Tensor) -> Tensor:
    return functional.silu(x)


@_computes
def tanh(x: Tensor) -> Tensor:
    return x.tanh()


@_computes
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "EXACT":
        return functional.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return functional.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    raise _refused("mode", mode)


@_computes
def softmax(x: Tensor, axis: Tensor | int = -1) -> Tensor:
    return x.softmax(_int(axis))


@_moves
def cast(x: Tensor, dtype: str) -> Tensor:
    wanted = _DTYPES.get(dtype, getattr(torch, dtype, None))
    if not isinstance(wanted, torch.dtype):
        raise _refused("dtype", dtype)
    return x.to(wanted)


@_moves
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


@_moves
def identity(x: Tensor) -> Tensor:
    return x


# Sums and products


def _axes(x: Tensor, axes: Tensor | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else _ints(axes)


@_computes
def reduce_mean(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    return x.mean(_axes(x, axes), keepdim=bool(keep_dims))


@_computes
def reduce_sum(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    return x.sum(_axes(x, axes), keepdim=bool(keep_dims), dtype=x.dtype)


@_computes
def reduce_max(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    return x.amax(_axes(x, axes), keepdim=bool(keep_dims))


@_moves
def reduce_argmax(
    x: Tensor,
    axis: Tensor | int = -1,
    keep_dims: Tensor | bool = False,
    output_dtype: str = "int32",
) -> Tensor:
    # MIL leaves open which of equal maxima is meant; this is the first, as the reference has it.
    found = _widened(x).argmax(_int(axis), keepdim=bool(keep_dims))
    return cast(found, output_dtype)


@_computes
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


@_computes
def matmul(
    x: Tensor,
    y: Tensor,
    transpose_x: Tensor | bool = False,
    transpose_y: Tensor | bool = False,
) -> Tensor:
    x = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    return x @ y


@_computes
def einsum(values: tuple[Tensor, ...], equation: str) -> Tensor:
    letters = dict.fromkeys(c for c in equation if c.isalpha())
    plain = "".join(
        chr(ord("a") + list(letters).index(c)) if c in letters else c for c in equation if c != " "
    )
    if plain not in ("abcd,adce->abce", "abc,cbd->abd"):
        raise _refused("equation", equation)  # Core ML has no other
    return torch.einsum(plain, *values)


@_computes
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask)


@_computes
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    spatial = x.ndim - 2
    if spatial not in (1, 2, 3):
        raise ArtifactError(f"x has the rank {x.ndim}; a convolution takes 3 to 5")
    if pad_type not in ("valid", "custom"):
        raise _refused("pad_type", pad_type)
    before_after = _ints(pad) if pad_type == "custom" and pad is not None else [0] * 2 * spatial
    before, after = before_after[::2], before_after[1::2]
    if before != after:
        x = functional.pad(x, _for_torch(before, after))
        before = [0] * spatial
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
    found: Tensor = convolve(
        x,
        weight,
        bias,
        stride=_ints(strides) if strides is not None else 1,
        padding=before,
        dilation=_ints(dilations) if dilations is not None else 1,
        groups=_int(groups),
    )
    return found


def _for_torch(before: list[int], after: list[int]) -> list[int]:
    """What to pad, as torch has it: the last axis first."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


# Pooling


def _pooled(x: Tensor, kernel_sizes: Tensor, pad_type: str, pad: Tensor | None) -> list[int]:
    """What is to be padded, as torch has it; for pictures alone."""
    if x.ndim != 4:
        raise _refused("rank of x", x.ndim)
    if pad_type not in ("valid", "custom"):
        raise _refused("pad_type", pad_type)
    sizes = _ints(pad) if pad_type == "custom" and pad is not None else []
    sizes = sizes or [0] * 2 * len(_ints(kernel_sizes))
    return _for_torch(sizes[::2], sizes[1::2])


@_computes
def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | bool = False,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    padding = _pooled(x, kernel_sizes, pad_type, pad)
    if ceil_mode:
        raise _refused("ceil_mode", True)
    if exclude_padding_from_average and any(padding):
        raise _refused("exclude_padding_from_average", True)
    steps = _ints(strides) if strides is not None else 1
    return functional.avg_pool2d(functional.pad(x, padding), _ints(kernel_sizes), steps)


# Norms


@_computes
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, float(epsilon))


@_computes
def instance_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=float(epsilon))


@_computes
def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    normed = sorted(axis % x.ndim for axis in _axes(x, axes))
    order = [axis for axis in range(x.ndim) if axis not in normed] + normed
    last = x.permute(order)
    shape = last.shape[x.ndim - len(normed) :]
    result = functional.layer_norm(last, shape, gamma, beta, float(epsilon))
    return result.permute([order.index(axis) for axis in range(x.ndim)])


# Shapes


@_moves
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@_moves
def reshape(x: Tensor, shape: Tensor) -> Tensor:
    sizes = _ints(shape)
    if 0 in sizes and len(sizes) != x.ndim:
        raise ArtifactError(f"shape {sizes} keeps a size of another rank, {x.ndim}")
    return x.reshape([x.shape[axis] if n == 0 else n for axis, n in enumerate(sizes)])


@_moves
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(_ints(perm))


@_moves
def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(_ints(axes))
    for axis in sorted(axis + rank if axis < 0 else axis for axis in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


@_moves
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


@_moves
def concat(values: tuple[Tensor, ...], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    if interleave:
        raise _refused("interleave", True)
    # Scalars make a vector: so a shape is put together.
    parts = [value.reshape(1) if value.ndim == 0 else value for value in values]
    return torch.cat(parts, _int(axis))


@_moves
def stack(values: tuple[Tensor, ...], axis: Tensor) -> Tensor:
    return torch.stack(values, _int(axis))


@_moves
def split(
    x: Tensor,
    axis: Tensor,
    num_splits: Tensor | None = None,
    split_sizes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    size = x.shape[_int(axis)]
    if split_sizes is not None:
        sizes = _ints(split_sizes)
    elif num_splits is not None:
        sizes = [size // _int(num_splits)] * _int(num_splits)
    else:
        raise ArtifactError("it has neither num_splits nor split_sizes")
    return torch.split(x, sizes, _int(axis))


@_moves
def tile(x: Tensor, reps: Tensor) -> Tensor:
    return x.tile(_ints(reps))


@_moves
def fill(shape: Tensor, value: Tensor | None = None) -> Tensor:
    value = torch.zeros(()) if value is None else value
    return value.reshape(()).expand(_ints(shape))


@_moves
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return fill(torch.tensor(ref_tensor.shape), value)


@_computes
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@_moves
def pad(
    x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0
) -> Tensor:
    before, after = _ints(pad)[::2], _ints(pad)[1::2]
    if mode == "constant":
        return functional.pad(x, _for_torch(before, after), value=float(constant_val))
    if mode not in ("reflect", "replicate"):
        raise _refused("mode", mode)
    for axis, low, high in zip(range(-len(before), 0), before, after, strict=True):
        last = x.shape[axis] - 1
        index = torch.arange(-low, last + 1 + high)
        mirrored = last - (last - index.abs()).abs()
        x = x.index_select(axis, mirrored if mode == "reflect" else index.clamp(0, last))
    return x


@_moves
def upsample_nearest_neighbor(
    x: Tensor,
    scale_factor_height: Tensor | float = 1,
    scale_factor_width: Tensor | float = 1,
) -> Tensor:
    high, wide = float(scale_factor_height), float(scale_factor_width)
    if not (high.is_integer() and wide.is_integer()):
        raise _refused("scale_factor", (high, wide))
    *leading, height, width = x.shape
    repeated = x[..., :, None, :, None].expand(*leading, height, int(high), width, int(wide))
    return repeated.reshape(*leading, height * int(high), width * int(wide))


@_moves
def pixel_shuffle(x: Tensor, upscale_factor: Tensor | int) -> Tensor:
    return functional.pixel_shuffle(x, _int(upscale_factor))


@_moves
def pixel_unshuffle(x: Tensor, downscale_factor: Tensor | int) -> Tensor:
    return functional.pixel_unshuffle(x, _int(downscale_factor))


@_computes
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Tensor | float = 1,
    scale_factor_width: Tensor | float = 1,
    align_corners: Tensor | bool = True,
    half_pixel_centers: Tensor | bool | None = None,
) -> Tensor:
    corners = bool(align_corners)
    if half_pixel_centers is not None and bool(half_pixel_centers) == corners:
        raise _refused("half_pixel_centers", bool(half_pixel_centers))
    scales = float(scale_factor_height), float(scale_factor_width)
    sizes = [n * scale for n, scale in zip(x.shape[-2:], scales, strict=True)]
    if not all(size.is_integer() for size in sizes):
        raise _refused("scale_factor", scales)
    size = [int(one) for one in sizes]
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=corners)


@_moves
def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    none = [0] * x.ndim
    strides = _ints(stride) if stride is not None else [1] * x.ndim
    from_start, to_end, squeezed = (
        _ints(mask) if mask is not None else none for mask in (begin_mask, end_mask, squeeze_mask)
    )
    if min(strides, default=1) < 1:
        raise _refused("stride", strides)
    index: list[int | slice] = []
    for axis, (low, high) in enumerate(zip(_ints(begin), _ints(end), strict=True)):
        if squeezed[axis]:
            index.append(low)
        else:
            first, last = None if from_start[axis] else low, None if to_end[axis] else high
            index.append(slice(first, last, strides[axis]))
    return x[tuple(index)]


@_moves
def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    for axis, (first, count) in enumerate(zip(_ints(begin), _ints(size), strict=True)):
        first = first % x.shape[axis] if first < 0 else first
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


# Lookups

#: From this operator set on (iOS 17), an index below zero is out of bounds.
_POSITIVE_INDICES = 7


def _index(indices: Tensor, size: int, opset: int) -> Tensor:
    """Indices of an axis, none of them out of its bounds."""
    found = indices.long()
    least = -size if opset < _POSITIVE_INDICES else 0
    if found.numel() and (int(found.min()) < least or int(found.max()) >= size):
        raise ArtifactError(
            f"an index is out of bounds: {int(found.min())} to {int(found.max())}, of {size}"
        )
    return found % size


def _no_batch(batch_dims: Tensor | int) -> None:
    if _int(batch_dims):
        raise _refused("batch_dims", _int(batch_dims))


# Indices are always validated: Core ML's out-of-bounds behaviour is undefined.


@_moves
def gather(
    x: Tensor,
    indices: Tensor,
    opset: int,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    _no_batch(batch_dims)
    at = _int(axis) % x.ndim
    index = _index(indices, x.shape[at], opset)
    found = x.index_select(at, index.reshape(-1))
    return found.reshape((*x.shape[:at], *index.shape, *x.shape[at + 1 :]))


@_moves
def gather_along_axis(
    x: Tensor,
    indices: Tensor,
    opset: int,
    axis: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    return torch.take_along_dim(x, _index(indices, x.shape[_int(axis)], opset), _int(axis))


@_moves
def gather_nd(
    x: Tensor,
    indices: Tensor,
    opset: int,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    _no_batch(batch_dims)
    columns = indices.unbind(-1)
    return x[tuple(_index(column, n, opset) for column, n in zip(columns, x.shape, strict=False))]
