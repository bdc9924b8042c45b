"""``fill_diagonal_`` reads memory in steps of its own, which no graph without memory can say."""

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from perfuse.passes.calls import call, value

__all__ = ["masked_diagonals"]

_aten = torch.ops.aten


def masked_diagonals(program: ExportedProgram) -> bool:
    """Fill a diagonal where the row's number is the column's; returns whether there was one."""
    found = [
        node
        for node in program.graph.nodes
        if node.target is _aten.fill_diagonal_.default and value(node).dim() == 2
    ]
    for node in found:
        matrix, number = node.args[:2]
        assert isinstance(matrix, Node)
        with program.graph.inserting_before(node), value(matrix).fake_mode:
            rows = call(program.graph, _aten.unsqueeze.default, _counted(matrix, 0), 1)
            mask = call(program.graph, _aten.eq.Tensor, rows, _counted(matrix, 1))
            made = call(program.graph, _aten.masked_fill_.Scalar, matrix, mask, number)
        node.replace_all_uses_with(made)
        program.graph.erase_node(node)
    return bool(found)


def _counted(matrix: Node, axis: int) -> Node:
    """0, 1, 2, … along an axis."""
    graph: Graph = matrix.graph
    held = value(matrix)
    size = held.shape[axis]
    if not isinstance(size, int):
        size = call(graph, _aten.sym_size.int, matrix, axis)
    return call(graph, _aten.arange.default, size, device=held.device)
