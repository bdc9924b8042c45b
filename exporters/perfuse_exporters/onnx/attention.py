"""Attention as one operator, which ONNX Runtime computes without holding all of its scores.

ONNX's own ``Attention`` would say the same, but ONNX Runtime 1.31 computes it score by score on the
CPU: 2.1 GB for one layer of Stable Diffusion 1.5 at 512². So the graph calls ONNX Runtime's
``MultiHeadAttention``, and the file defines a function of that name, of standard operators, which
is what engines that do not have the operator run.
"""

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


def fused(query: Any, key: Any, value: Any, scale: float) -> Any:
    """Attention of [B, H, N, D], H and D known, in a graph that is being made; see `define`."""
    from onnxscript import opset20 as op
    from onnxscript.values import Op, Opset

    heads = query.shape[1]

    def together(value: Any) -> Any:
        tokens = op.Transpose(value, perm=[0, 2, 1, 3])
        return op.Reshape(tokens, op.Constant(value_ints=[0, 0, heads * value.shape[3]]))

    call = Op(Opset(DOMAIN, 1), _NAME, _schema())
    out = call(together(query), together(key), together(value), num_heads=heads, scale=scale)
    apart = op.Reshape(out, op.Constant(value_ints=[0, 0, heads, value.shape[3]]))
    return op.Transpose(apart, perm=[0, 2, 1, 3])


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
