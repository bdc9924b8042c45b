"""``squeeze`` of an axis whose size is not 1 does nothing in PyTorch, and is an error in ONNX."""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from perfuse.passes.calls import value

__all__ = ["squeezed"]

_aten = torch.ops.aten


def squeezed(program: ExportedProgram) -> bool:
    """Name only axes of size 1 in every ``squeeze``; returns whether anything was to be done."""
    nodes = [n for n in program.graph.nodes if n.target in (_aten.squeeze.dim, _aten.squeeze.dims)]
    changed = [_changed(node) for node in nodes]
    return any(changed)


def _changed(node: Node) -> bool:
    source = node.args[0]
    assert isinstance(source, Node)
    before, named = value(source), node.args[1]
    axes = [named] if isinstance(named, int) else list(named)  # type: ignore[arg-type]
    ones = [axis for axis in axes if _is_one(before.shape[axis])]
    if len(ones) == len(axes):
        return False
    if ones:
        node.target, node.args = _aten.squeeze.dims, (source, ones)
        return True
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)
    return True


def _is_one(size: int | torch.SymInt) -> bool:
    # A size that is not known was found to be above 1: capture makes a graph of its own for 1.
    return isinstance(size, int) and size == 1
