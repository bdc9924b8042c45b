"""``copy_`` spreads what it writes over the place that is written to; exporters to ONNX do not."""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from perfuse.passes.calls import call, value

__all__ = ["spread"]

_aten = torch.ops.aten


def spread(program: ExportedProgram) -> bool:
    """Give what is written the shape of its place; returns whether anything was to be done."""
    nodes = [node for node in program.graph.nodes if node.target is _aten.copy_.default]
    found = [node for node in nodes if _is_narrower(*node.args[:2])]
    for node in found:
        place, written, *rest = node.args
        assert isinstance(place, Node)
        with program.graph.inserting_before(node), value(place).fake_mode:
            wide = call(program.graph, _aten.expand_as.default, written, place)
        node.args = (place, wide, *rest)
    return bool(found)


def _is_narrower(place: Node, written: Node) -> bool:
    sizes, given = value(place).shape, value(written).shape
    return len(sizes) != len(given) or any(
        isinstance(one, int) and one == 1 and not (isinstance(size, int) and size == 1)
        for size, one in zip(sizes, given, strict=True)
    )
