"""Numbers that a graph itself rounds to bfloat16, which OpenVINO's CPU plugin may round wrongly."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["round_before_converting"]

#: A float32 has 16 bits more than a bfloat16.
_SPLITTER = np.float32(2**16 + 1)
#: Larger numbers times the splitter are no float32.
_LARGEST = np.float32(2.0**110)


def round_before_converting(model: "ov.Model") -> None:
    """Round float32 to the nearest bfloat16 by arithmetic before each conversion to bfloat16.

    Of a size that is not fixed, 2026.4 converts by a formula that rounds a quarter of all numbers to
    the farther neighbour; of a fixed size, by another one that is right. What is a bfloat16 already
    stays what it is by both. The arithmetic is Veltkamp's splitting (Dekker, "A floating-point
    technique for extending the available precision", 1971). Numbers above 2**110, such as what hides
    tokens in a mask, are left to the conversion. For graphs that are computed in float32 alone.
    """
    from openvino import opset13

    for op in model.get_ordered_ops():
        if op.get_type_name() != "Convert" or op.get_element_type().get_type_name() != "bf16":
            continue
        value = op.input_value(0)
        if value.get_element_type().get_type_name() != "f32":
            continue
        scaled = opset13.multiply(value, _SPLITTER)
        nearest = opset13.subtract(scaled, opset13.subtract(scaled, value))
        fits = opset13.less(opset13.abs(value), _LARGEST)
        op.input(0).replace_source_output(opset13.select(fits, nearest, value).output(0))
    model.validate_nodes_and_infer_types()
