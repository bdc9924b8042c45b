"""Whole numbers that OpenVINO's cache of compiled models would change."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["saturate"]

_LIMITS = np.iinfo(np.int32)


def saturate(model: "ov.Model") -> None:
    """Bring each constant of 64 bits within 32, which the CPU plugin computes whole numbers in.

    Compiling, it takes the nearest number of 32 bits. A cache that leaves weights in the model's file, as
    perfuse has it kept, reads constants there, and 2026.4 takes the lower 32 bits instead: the end of
    ``x[:, 1:]``, which is the largest number of 64 bits, becomes -1, and the last element is lost.
    """
    from openvino import opset13

    for op in model.get_ordered_ops():
        if op.get_type_name() != "Constant" or op.get_element_type().get_type_name() != "i64":
            continue
        numbers = op.data
        within = np.clip(numbers, _LIMITS.min, _LIMITS.max)
        if (within != numbers).any():
            made = opset13.constant(within)
            made.set_friendly_name(op.get_friendly_name())
            op.output(0).replace(made.output(0))
    model.validate_nodes_and_infer_types()
