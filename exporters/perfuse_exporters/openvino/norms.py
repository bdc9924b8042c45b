"""Group normalisations that OpenVINO's CPU plugin cannot compile, in operations that it can."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["split_norms"]

#: Elementwise operations of two tensors.
_OF_TWO = frozenset(("Add", "Subtract", "Multiply", "Divide"))


def split_norms(model: "ov.Model") -> None:
    """Write out, as MVN and arithmetic, each normalisation whose result meets another tensor.

    ``norm(x) * (1 + scale)``, as ResNet blocks and AdaGroupNorm have it: where the sizes are known, 2026.4
    joins a GroupNormalization and both sides of the product into one kernel, and compiling that ends
    the process.
    """
    for op in model.get_ordered_ops():
        if op.get_type_name() == "GroupNormalization" and _meets_another(op) and _is_static(op):
            op.output(0).replace(_split(op))
    model.validate_nodes_and_infer_types()


def _meets_another(op: "ov.Node") -> bool:
    """Whether an elementwise operation takes the result, and something that is no constant."""
    readers = [port.get_node() for port in op.output(0).get_target_inputs()]
    return any(
        reader.get_type_name() in _OF_TWO
        and all(value.get_node().get_type_name() != "Constant" for value in reader.input_values())
        for reader in readers
    )


def _is_static(op: "ov.Node") -> bool:
    return bool(op.get_output_partial_shape(0).is_static)


def _split(op: "ov.Node") -> "ov.Output":
    from openvino import opset13

    source, weight, bias = op.input_values()
    shape = [int(size) for size in op.get_output_shape(0)]
    given = op.get_attributes()
    apart = np.array([shape[0], given["num_groups"], -1], np.int64)
    grouped = opset13.reshape(source, apart, special_zero=False)
    normal = opset13.mvn(grouped, np.array([2], np.int64), True, given["epsilon"], "inside_sqrt")
    whole = opset13.reshape(normal, np.array(shape, np.int64), special_zero=False)
    channels = np.array([1, shape[1], *(1 for _ in shape[2:])], np.int64)
    scaled = opset13.multiply(whole, opset13.reshape(weight, channels, special_zero=False))
    shifted = opset13.add(scaled, opset13.reshape(bias, channels, special_zero=False))
    shifted.set_friendly_name(op.get_friendly_name())
    return shifted.output(0)
