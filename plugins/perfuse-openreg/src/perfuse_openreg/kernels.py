"""The operators that the device has: the table to extend where a model needs one more.

Each takes tensors in device memory, computes in float32 (or in whole numbers) and returns tensors; the
driver rounds them to the type that the program states, after every operator. Many accelerators work
so: wide accumulators, narrow memory.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from perfuse.errors import ExecutionError
from torch import Tensor

__all__ = ["KERNELS", "run"]

_aten = torch.ops.aten

# PyTorch's own, by the names that torch.export gives them.
_NAMES = (
    "_softmax.default",
    "_to_copy.default",
    "abs.default",
    "add.Tensor",
    "addmm.default",
    "alias.default",
    "any.dim",
    "arange.start_step",
    "argmax.default",
    "avg_pool2d.default",
    "bmm.default",
    "cat.default",
    "clamp.default",
    "clone.default",
    "constant_pad_nd.default",
    "convolution.default",
    "cos.default",
    "div.Tensor",
    "embedding.default",
    "eq.Scalar",
    "eq.Tensor",
    "exp.default",
    "expand.default",
    "full_like.default",
    "ge.Scalar",
    "gelu.default",
    "gt.Scalar",
    "index.Tensor",
    "le.Scalar",
    "le.Tensor",
    "log.default",
    "log1p.default",
    "logical_not.default",
    "mean.dim",
    "mm.default",
    "mul.Scalar",
    "mul.Tensor",
    "native_group_norm.default",
    "native_layer_norm.default",
    "permute.default",
    "pow.Tensor_Scalar",
    "relu.default",
    "scalar_tensor.default",
    "select.int",
    "sigmoid.default",
    "sin.default",
    "slice.Tensor",
    "split_with_sizes.default",
    "sqrt.default",
    "squeeze.dims",
    "sub.Tensor",
    "sum.dim_IntList",
    "tanh.default",
    "unsqueeze.default",
    "upsample_nearest2d.vec",
    "view.default",
    "where.self",
)


def _lookup(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    kernel: Callable[..., Any] = getattr(getattr(_aten, packet), overload)
    return kernel


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    # Its last argument asks for what happens here anyway, and is refused for float32.
    return torch.softmax(x, dim)


#: By name; nothing else runs on the device.
KERNELS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {**{name: _lookup(name) for name in _NAMES}, "_softmax.default": _softmax}
)


def run(operator: str, arguments: list[Any], options: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Apply an operator to tensors.

    Raises:
        ExecutionError: it cannot be applied to these.
    """
    try:
        with torch.inference_mode():
            given = {name: _widened(option) for name, option in options.items()}
            result = KERNELS[operator](*_widened(arguments), **given)
    except (RuntimeError, IndexError, TypeError, ValueError) as exc:
        raise ExecutionError(f"{operator} failed: {str(exc).splitlines()[0]}") from exc
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _widened(argument: Any) -> Any:
    if isinstance(argument, list):
        return [_widened(one) for one in argument]
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.float()
    return argument
