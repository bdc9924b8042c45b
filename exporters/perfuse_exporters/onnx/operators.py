"""PyTorch operators that have a shorter or more exact form in ONNX than the converter's own."""

from collections.abc import Callable
from typing import Any

from perfuse.errors import ExportError
from perfuse_exporters.onnx.attention import fused

__all__ = ["translations"]


def translations() -> "dict[Callable[..., Any], Callable[..., Any]]":
    """PyTorch operators that have a shorter or more exact form than the converter's own."""
    import torch

    aten = torch.ops.aten
    return {
        aten.group_norm.default: _group_norm,
        aten.scaled_dot_product_attention.default: _attention,
    }


def _group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Group normalisation of [B, C, …] (Wu & He 2018): every group is one long instance.

    Statistics and affine are float32 whatever the input, as PyTorch computes them.
    """
    import onnx_ir as ir
    from onnxscript import opset20 as op

    half = x.dtype != ir.DataType.FLOAT
    full = op.Cast(x, to=ir.DataType.FLOAT) if half else x
    grouped = op.Reshape(full, op.Constant(value_ints=[0, num_groups, -1]))
    ones = op.Constant(value_floats=[1.0] * num_groups)
    zeros = op.Constant(value_floats=[0.0] * num_groups)
    normal = op.InstanceNormalization(grouped, ones, zeros, epsilon=eps)
    out = op.Reshape(normal, op.Shape(x))
    axes = op.Constant(value_ints=list(range(1, len(x.shape) - 1)))
    for factor, apply in ((weight, op.Mul), (bias, op.Add)):
        if factor is not None:
            factor = op.Cast(factor, to=ir.DataType.FLOAT) if half else factor
            out = apply(out, op.Unsqueeze(factor, axes))
    return op.Cast(out, to=x.dtype) if half else out


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Scaled dot-product attention over the last two axes (Vaswani et al. 2017, eq. 1).

    The query is scaled, not the scores: it is smaller, and in half precision cannot overflow.
    """
    import numpy as np
    import onnx_ir as ir
    from onnxscript import opset20 as op

    if enable_gqa or dropout_p:
        raise ExportError(
            "Attention with grouped queries or dropout was to be lowered to ONNX; perfuse lowers "
            "plain attention. Expand keys and values in the model, and use it in eval mode."
        )
    dtype = query.dtype.numpy()
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if not is_causal and _has_heads(query, key, value) and _hides_keys(attn_mask):
        return fused(query, key, value, factor, attn_mask)
    rank = len(key.shape)
    transposed = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    query = op.Mul(query, op.Constant(value=ir.tensor(np.array(factor, dtype=dtype))))
    scores = op.MatMul(query, transposed)
    # The lowest finite number, because minus infinity in a fully masked row would give NaN.
    lowest = op.Constant(value=ir.tensor(np.array(np.finfo(dtype).min, dtype=dtype)))
    if is_causal:
        size = op.Shape(scores, start=-2)
        yes = op.ConstantOfShape(size, value=ir.tensor(np.array([1], dtype=np.int64)))
        attn_mask = op.Cast(op.Trilu(yes, upper=0), to=ir.DataType.BOOL)
        scores = op.Where(attn_mask, scores, lowest)
    elif attn_mask is not None and attn_mask.dtype == ir.DataType.BOOL:
        scores = op.Where(attn_mask, scores, lowest)
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _hides_keys(mask: Any) -> bool:
    """Whether a mask, if there is one, is the same for all queries and heads."""
    return mask is None or (len(mask.shape) == 4 and tuple(mask.shape[1:3]) == (1, 1))


def _has_heads(*values: Any) -> bool:
    """Whether all are [B, H, N, D], with the same B and H, and every H and D a number."""
    batch, heads = values[0].shape[:2]
    return all(
        len(value.shape) == 4
        and value.shape[0] == batch
        and value.shape[1] == heads
        and isinstance(heads, int)
        and isinstance(value.shape[3], int)
        for value in values
    )
