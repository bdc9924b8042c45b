"""Attention with as many tokens as heads, whose layouts OpenVINO's CPU plugin takes for one another."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["spread_heads"]


def spread_heads(model: "ov.Model") -> None:
    """Make the heads of such an attention a part of the batch.

    Where the numbers are known and equal, 2026.4 joins attention with the transpositions and the arithmetic
    around it into one kernel that does not tell heads from tokens: it answers wrongly, and compiling it may
    end the process. Rotary embeddings, in small HunyuanDiT and Lumina models, are such arithmetic.
    """
    for op in model.get_ordered_ops():
        if op.get_type_name() == "ScaledDotProductAttention" and _is_ambiguous(op):
            op.output(0).replace(_spread(op))
    model.validate_nodes_and_infer_types()


def _is_ambiguous(op: "ov.Node") -> bool:
    shapes = [value.get_partial_shape() for value in op.input_values()[:3]]
    if any(shape.is_dynamic or len(shape) != 4 for shape in shapes):
        return False
    query, key, _ = ([int(size.get_length()) for size in shape] for shape in shapes)
    return query[1] == key[1] and query[1] in (query[2], key[2])


def _spread(op: "ov.Node") -> "ov.Output":
    """(batch, heads, tokens, width) as (batch × heads, 1, tokens, width), and back."""
    from openvino import opset13

    def together(value: "ov.Output") -> "ov.Node":
        batch, heads, *rest = (int(size) for size in value.get_shape())
        return _shaped(value, [batch * heads, 1, *rest])

    query, key, values, *others = op.input_values()
    given = [together(value) for value in (query, key, values)]
    if others:
        whole = np.array([*query.get_shape()[:3], key.get_shape()[2]], np.int64)
        mask = opset13.broadcast(others[0], whole)
        given += [together(mask.output(0)), *others[1:]]
    causal = bool(op.get_attributes()["causal"])
    made = opset13.scaled_dot_product_attention(*given, causal=causal)
    back = _shaped(made.output(0), [int(size) for size in op.get_output_shape(0)])
    back.set_friendly_name(op.get_friendly_name())
    return back.output(0)


def _shaped(value: "ov.Output", shape: list[int]) -> "ov.Node":
    from openvino import opset13

    return opset13.reshape(value, np.array(shape, np.int64), special_zero=False)
