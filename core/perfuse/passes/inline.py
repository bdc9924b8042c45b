"""Parts of a model under ``torch.autocast(enabled=False)`` or ``no_grad`` are graphs of their own.

Nothing is captured under autocast or with gradients, so that switching them off says nothing.
"""

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

__all__ = ["inlined"]


def inlined(program: ExportedProgram) -> bool:
    """Put what such parts compute into the graph itself."""
    changed = False
    while True:
        found = [node for node in program.graph.nodes if _part(program, node) is not None]
        for node in found:
            _put(program, node)
        changed = changed or bool(found)
        if not found:
            return changed


def _part(program: ExportedProgram, node: Node) -> tuple[GraphModule, tuple[Any, ...]] | None:
    """The graph that a node calls and what it is given; ``None`` for another node."""
    higher = torch.ops.higher_order
    if node.target is higher.wrap_with_set_grad_enabled:
        _, name, *given = node.args
    elif node.target is higher.wrap_with_autocast and node.args[2] is False:
        _, _, _, _, name, *given = node.args
    else:
        return None
    assert isinstance(name, Node)
    part = getattr(program.graph_module, str(name.target))
    return part, tuple(given)


def _put(program: ExportedProgram, node: Node) -> None:
    graph, found = program.graph, _part(program, node)
    assert found is not None
    part, given = found
    inputs = [one for one in part.graph.nodes if one.op == "placeholder"]
    known = dict(zip(inputs, given, strict=True))
    with graph.inserting_before(node):
        for one in part.graph.nodes:
            if one.op == "get_attr":  # a part within the part
                name = f"{node.name}_{one.target}"
                setattr(program.graph_module, name, getattr(part, str(one.target)))
                known[one] = graph.get_attr(name)
            elif one.op == "call_function":
                known[one] = graph.node_copy(one, known.__getitem__)
    (returned,) = part.graph.output_node().args
    assert isinstance(returned, list | tuple)
    for user in list(node.users):
        which = user.args[1]
        assert isinstance(which, int)
        user.replace_all_uses_with(known[returned[which]])
        graph.erase_node(user)
    graph.erase_node(node)
