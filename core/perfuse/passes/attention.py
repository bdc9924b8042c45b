"""Attention whose queries share keys and values in groups is attention with these repeated.

Grouped queries: Ainslie et al., https://arxiv.org/abs/2305.13245.
"""

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from perfuse.passes.calls import call, value

__all__ = ["ungrouped"]

_aten = torch.ops.aten


def ungrouped(program: ExportedProgram) -> bool:
    """Repeat keys and values for every query of their group."""
    found = [node for node in program.graph.nodes if _is_grouped(node)]
    for node in found:
        query, key, given, *rest = node.args
        times = value(query).shape[-3] // value(key).shape[-3]
        with program.graph.inserting_before(node):
            repeated = [_repeated(program.graph, one, times) for one in (key, given)]
        node.args = (query, *repeated, *rest)
        node.kwargs = {n: one for n, one in node.kwargs.items() if n != "enable_gqa"}
    return bool(found)


def _is_grouped(node: Node) -> bool:
    attention = node.target is _aten.scaled_dot_product_attention.default
    return attention and bool(node.kwargs.get("enable_gqa"))


def _repeated(graph: Graph, node: Node, times: int) -> Node:
    return call(graph, _aten.repeat_interleave.self_int, node, times, -3) if times > 1 else node
