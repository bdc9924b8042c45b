"""Attention as one operator, which ONNX Runtime computes without holding all of its scores.

ONNX's own ``Attention`` would say the same, but ONNX Runtime 1.31 computes it score by score on the
CPU: 2.1 GB for one layer of Stable Diffusion 1.5 at 512². So the graph calls ONNX Runtime's
``MultiHeadAttention``, and the file defines a function of that name, of standard operators, which
is what engines that do not have the operator run.

ONNX Runtime holds all scores, too, where it is given a mask. One that hides keys, the same ones from every
query, is a channel more instead: a key's score is the product of its channels with a query's, so a one in the
query adds what the key has there.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DOMAIN", "define", "fused"]

DOMAIN = "com.microsoft"
_NAME = "MultiHeadAttention"
#: [B, N, H * D] and the same for keys and values, to [B, N, H * D] (Vaswani et al. 2017, eq. 1).
_FUNCTION = f"""
<domain: "{DOMAIN}", opset_import: ["": 20]>
{_NAME} <num_heads, scale> (query, key, value) => (output)
{{
    heads = Constant <value_int: int = @num_heads> ()
    one = Constant <value_ints = [1]> ()
    width = Constant <value_ints = [-1]> ()
    kept = Constant <value_ints = [0, 0]> ()
    listed = Reshape (heads, one)
    split = Concat <axis = 0> (kept, listed, width)
    joined = Concat <axis = 0> (kept, width)
    split_query = Reshape (query, split)
    split_key = Reshape (key, split)
    split_value = Reshape (value, split)
    q = Transpose <perm = [0, 2, 1, 3]> (split_query)
    k = Transpose <perm = [0, 2, 3, 1]> (split_key)
    v = Transpose <perm = [0, 2, 1, 3]> (split_value)
    factor = Constant <value_float: float = @scale> ()
    cast_factor = CastLike (factor, q)
    scaled = Mul (q, cast_factor)
    scores = MatMul (scaled, k)
    weights = Softmax <axis = -1> (scores)
    attended = MatMul (weights, v)
    tokens = Transpose <perm = [0, 2, 1, 3]> (attended)
    output = Reshape (tokens, joined)
}}
"""


def fused(query: Any, key: Any, value: Any, scale: float, bias: Any = None) -> Any:
    """Attention of [B, H, N, D], H and D known, in a graph that is being made; see `define`.

    Args:
        query: Queries, [B, H, N, D].
        key: Keys, [B, H, S, D].
        value: Values, [B, H, S, V].
        scale: Of the scores.
        bias: What is added to the scores of a key, [B or 1, 1, 1, S]; or whether it counts.
    """
    from onnxscript import opset20 as op
    from onnxscript.values import Op, Opset

    heads = query.shape[1]

    def together(value: Any, wider: Callable[[Any], Any] | None = None) -> Any:
        tokens, width = op.Transpose(value, perm=[0, 2, 1, 3]), value.shape[3]
        if wider is not None:
            tokens, width = wider(tokens), width + 1
        return op.Reshape(tokens, op.Constant(value_ints=[0, 0, heads * width]))

    wider = _biased(bias, scale, query.dtype.numpy()) if bias is not None else (None, None)
    call = Op(Opset(DOMAIN, 1), _NAME, _schema())
    given = together(query, wider[0]), together(key, wider[1]), together(value)
    out = call(*given, num_heads=heads, scale=scale)
    apart = op.Reshape(out, op.Constant(value_ints=[0, 0, heads, value.shape[3]]))
    return op.Transpose(apart, perm=[0, 2, 1, 3])


def _biased(
    bias: Any, scale: float, dtype: Any
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """What gives queries and keys [B, N, H, D] a channel more: ones, and what a key's scores gain."""
    import numpy as np
    import onnx_ir as ir
    from onnxscript import opset20 as op

    def number(value: float) -> Any:
        return op.Constant(value=ir.tensor(np.array(value, dtype=dtype)))

    # A finite number hides enough, and of minus infinity alone the share would be NaN.
    lowest = float(np.finfo(dtype).min) * min(scale, 1.0)
    if bias.dtype == ir.DataType.BOOL:
        bias = op.Where(bias, number(0), number(lowest))
    bias = op.Mul(op.Max(bias, number(lowest)), number(1 / scale))
    added = op.Transpose(bias, perm=[0, 3, 1, 2])

    def channel(tokens: Any) -> Any:
        return op.Concat(op.Shape(tokens, start=0, end=3), op.Constant(value_ints=[1]), axis=0)

    def asking(tokens: Any) -> Any:
        one = ir.tensor(np.array([1], dtype=dtype))
        return op.Concat(tokens, op.ConstantOfShape(channel(tokens), value=one), axis=3)

    def asked(tokens: Any) -> Any:
        return op.Concat(tokens, op.Expand(added, channel(tokens)), axis=3)

    return asking, asked


def _schema() -> Any:
    from onnx.defs import OpSchema

    parameter, attribute = OpSchema.FormalParameter, OpSchema.Attribute
    return OpSchema(
        _NAME,
        DOMAIN,
        1,
        inputs=[parameter(name, "T") for name in ("query", "key", "value")],
        outputs=[parameter("output", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
        attributes=[
            attribute("num_heads", OpSchema.AttrType.INT),
            attribute("scale", OpSchema.AttrType.FLOAT),
        ],
    )


def define(model: "ir.Model") -> None:
    """Give the model the function behind its calls, if it has any."""
    import onnx_ir as ir
    from onnx.parser import parse_function

    if any(node.domain == DOMAIN for node in model.graph):
        function = ir.from_proto(parse_function(_FUNCTION))
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = 1
