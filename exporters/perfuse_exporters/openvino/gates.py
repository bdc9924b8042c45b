"""Gated feed-forward networks, in operations that OpenVINO's CPU plugin does not join.

``down(act(gate(x)) * up(x))``, as language models have it, becomes one kernel there where the processor
has matrix units (AMX) and computes in half precision. In 2026.4 this one ends the process with a division
by zero, on one thread whatever the size.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["split_gates"]

_SPLITS = frozenset(("Split", "VariadicSplit"))


def split_gates(model: "ov.Model") -> None:
    """Write what a gate does to the other half in another order: of the activation ``x s(x)``,
    multiply ``x`` first and ``s(x)`` last. It is as many products, and no activation to join.
    """
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Multiply" and _is_read_by_a_matrix(op):
            _split(op)
    model.validate_nodes_and_infer_types()


def _is_read_by_a_matrix(op: "ov.Node") -> bool:
    return any(
        port.get_node().get_type_name() == "MatMul" for port in op.output(0).get_target_inputs()
    )


def _split(op: "ov.Node") -> None:
    """Split a product, if it is that of an activation of one matrix' result and of another one's."""
    from openvino import opset13

    for activated, other in (op.input_values(), op.input_values()[::-1]):
        parts = _parts(activated.get_node())
        if parts is None or not _is_of_a_matrix(parts[0]) or not _is_of_a_matrix(other):
            continue
        given, share = parts
        gated = opset13.multiply(share, opset13.multiply(given, other))
        gated.set_friendly_name(op.get_friendly_name())
        op.output(0).replace(gated.output(0))
        return


def _is_of_a_matrix(value: "ov.Output") -> bool:
    """Whether a matrix gives a value, or one whose result is cut into both halves."""
    node = value.get_node()
    if node.get_type_name() in _SPLITS:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "MatMul")


def _parts(activation: "ov.Node") -> "tuple[ov.Output, ov.Node] | None":
    """``x`` and ``s(x)`` of an activation ``x s(x)``; ``None`` for any other operation."""
    from openvino import opset13

    def number(value: float) -> "ov.Node":
        return opset13.constant(np.array(value, np.float32))

    if activation.get_type_name() == "Multiply":  # as the graph says it that came through ONNX
        return _multiplied(*activation.input_values())
    x = activation.input_value(0) if activation.get_input_size() else None
    if activation.get_type_name() == "Swish" and activation.get_input_size() == 1:
        return x, opset13.sigmoid(x)
    if activation.get_type_name() != "Gelu":
        return None
    if str(activation.get_attributes().get("approximation_mode", "ERF")).upper() == "TANH":
        cubic = opset13.multiply(opset13.multiply(x, x), number(0.044715))
        stretched = opset13.multiply(x, opset13.add(cubic, number(1.0)))
        rising = opset13.tanh(opset13.multiply(stretched, number(math.sqrt(2 / math.pi))))
    else:
        rising = opset13.erf(opset13.multiply(x, number(math.sqrt(0.5))))
    return x, opset13.multiply(opset13.add(rising, number(1.0)), number(0.5))


def _multiplied(first: "ov.Output", second: "ov.Output") -> "tuple[ov.Output, ov.Node] | None":
    """``x`` and ``s(x)`` where two values are these."""
    for x, share in ((first, second), (second, first)):
        node = share.get_node()
        if node.get_type_name() == "Sigmoid" and node.input_value(0) == x:
            return x, node
    return None
