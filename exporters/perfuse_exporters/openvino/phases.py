"""Finds what leads to a sine or a cosine: no device may compute that in half precision."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["find_phases"]


def find_phases(model: "ov.Model", precision: str) -> "list[ov.Node]":
    """The operations that lead to a sine or a cosine, put so that marks stay on them.

    In half precision a timestep of 999.3 is 1000, and what it is multiplied with is its phase. In float32
    ``(1000 - t) * f`` stays as it is: of ``1000 * f - t * f`` less is exact.
    """
    from openvino import opset13

    found: dict[str, ov.Node] = {}
    todo = [op for op in model.get_ordered_ops() if op.get_type_name() in ("Sin", "Cos")]
    while todo:
        op = todo.pop()
        if op.get_name() in found or op.get_type_name() == "ShapeOf":
            continue
        if precision != "float32" and (stretched := _of_the_input(op)) is not None:
            # Engines make other operations of those with a single number, and lose the mark.
            op.output(0).replace(stretched.output(0))
            op = stretched
        source = op.input_value(0) if op.get_input_size() else None
        if source is not None and op.get_type_name() == "Broadcast" and _repeats_nothing(op):
            # Engines turn it into a multiplication and lose the mark.
            op.output(0).replace(source)
            todo.append(source.get_node())
            continue
        if source is not None and op.get_type_name() == "Unsqueeze" and _adds_last_axis(op):
            # Engines turn it into a Reshape and lose the mark, too.
            shape = [0] * source.get_partial_shape().rank.get_length() + [1]
            reshape = opset13.reshape(source, np.array(shape, np.int64), special_zero=True)
            op.output(0).replace(reshape.output(0))
            op = reshape
        found[op.get_name()] = op
        todo.extend(value.get_node() for value in op.input_values())
    for name, op in found.items():
        if op.get_type_name() != "Parameter":  # an input, or a weight, has its name
            op.set_friendly_name(f"phase/{name}")  # in the file, a name need not be the only one
    model.validate_nodes_and_infer_types()
    return list(found.values())


def _of_the_input(op: "ov.Node") -> "ov.Node | None":
    """A product of frequencies and of something like ``(1 - t / 1000) * 1000``, as ``t * a + b`` with an ``a``
    and a ``b`` for each frequency; ``None`` for any other operation.
    """
    from openvino import opset13

    if op.get_type_name() != "Multiply":
        return None
    for axis, frequencies in (op.input_values(), op.input_values()[::-1]):
        constant, column = frequencies.get_node(), axis.get_node()
        if (
            constant.get_type_name() != "Constant"
            or column.get_type_name() != "Unsqueeze"
            or constant.data.size == 1
        ):
            continue
        source, scale, shift = _affine(column.input_value(0))
        if (scale, shift) == (1.0, 0.0):
            return None
        numbers = constant.data.astype(np.float64)
        again = opset13.unsqueeze(source, column.input_value(1))
        product = opset13.multiply(again, (scale * numbers).astype(np.float32))
        return opset13.add(product, (shift * numbers).astype(np.float32))
    return None


def _affine(value: "ov.Output") -> "tuple[ov.Output, float, float]":
    """What a value is made of by single numbers alone, and how: ``source * scale + shift``."""
    scale, shift = 1.0, 0.0
    while value.get_node().get_type_name() in ("Add", "Subtract", "Multiply", "Divide"):
        node = value.get_node()
        kind, sides = node.get_type_name(), node.input_values()
        numbers = [
            float(one.get_node().data.item())
            if one.get_node().get_type_name() == "Constant" and one.get_node().data.size == 1
            else None
            for one in sides
        ]
        at = 1 if numbers[0] is None else 0  # where the number is
        number = numbers[at]
        if number is None or (kind == "Divide" and at == 0):
            break
        value = sides[1 - at]
        if kind == "Multiply":
            scale *= number
        elif kind == "Divide":
            scale /= number
        elif kind == "Add" or at == 1:
            shift += scale * (number if kind == "Add" else -number)
        else:
            shift, scale = shift + scale * number, -scale
    return value, scale, shift


def _repeats_nothing(op: "ov.Node") -> bool:
    """Whether a Broadcast changes nothing: torch only repeats axes of known size 1."""
    before, after = (port.get_partial_shape() for port in (op.input_value(0), op.output(0)))
    if before.rank.is_dynamic or before.rank != after.rank:
        return False
    pairs = zip(before, after, strict=True)
    return all(old == new or old.is_dynamic or old.get_length() != 1 for old, new in pairs)


def _adds_last_axis(op: "ov.Node") -> bool:
    axes = op.input_value(1).get_node()
    rank = op.input_value(0).get_partial_shape().rank
    return (
        axes.get_type_name() == "Constant"
        and rank.is_static
        and [int(axis) for axis in axes.data.flatten()] in ([rank.get_length()], [-1])
    )
