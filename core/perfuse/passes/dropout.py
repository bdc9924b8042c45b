"""Dropout of nothing: a model that was not put into evaluation mode holds it."""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

__all__ = ["kept"]

_DROPOUTS = (torch.ops.aten.dropout.default, torch.ops.aten.dropout_.default)


def kept(program: ExportedProgram) -> bool:
    """Leave out every dropout with a probability of zero, or outside of training."""
    found = [node for node in program.graph.nodes if _drops_nothing(node)]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        program.graph.erase_node(node)
    return bool(found)


def _drops_nothing(node: Node) -> bool:
    return node.target in _DROPOUTS and (node.args[2] is False or bool(node.args[1] == 0))
