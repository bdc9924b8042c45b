"""Choosing between truth values is logic; engines choose between numbers alone."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from perfuse.passes.calls import call, value

__all__ = ["logical"]

_aten = torch.ops.aten


def logical(program: ExportedProgram) -> bool:
    """Write ``masked_fill`` and ``where`` of booleans with and, or, not."""
    found = [node for node in program.graph.nodes if _is_boolean(node)]
    for node in found:
        with program.graph.inserting_before(node):
            made = _CHOICES[node.target](program.graph, *node.args)
        node.replace_all_uses_with(made)
        program.graph.erase_node(node)
    return bool(found)


def _is_boolean(node: Node) -> bool:
    if node.target not in _CHOICES or value(node).dtype != torch.bool:
        return False
    choice = node.args[2]
    constant = isinstance(choice, bool | int | float)
    return constant if node.target is _aten.masked_fill.Scalar else isinstance(choice, Node)


def _filled(graph: Graph, tensor: Node, mask: Node, fill: bool) -> Node:
    if fill:
        return call(graph, _aten.logical_or.default, tensor, mask)
    kept = call(graph, _aten.logical_not.default, mask)
    return call(graph, _aten.logical_and.default, tensor, kept)


def _chosen(graph: Graph, mask: Node, yes: Node, no: Node) -> Node:
    """(mask ∧ yes) ∨ (¬mask ∧ no)."""
    if value(yes).dtype != torch.bool or value(no).dtype != torch.bool:
        raise AssertionError("a choice of booleans is made of booleans")
    first = call(graph, _aten.logical_and.default, mask, yes)
    other = call(graph, _aten.logical_not.default, mask)
    second = call(graph, _aten.logical_and.default, other, no)
    return call(graph, _aten.logical_or.default, first, second)


_CHOICES: Mapping[Any, Callable[..., Node]] = {
    _aten.masked_fill.Scalar: _filled,
    _aten.where.self: _chosen,
}
