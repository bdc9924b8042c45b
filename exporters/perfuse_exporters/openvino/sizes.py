"""Sizes that OpenVINO would not know.

Its frontend works out all sizes of what ``unflatten`` makes together. Of those of attention one, the number
of tokens, follows from height and width; the number of heads and their width are hidden with it, and
attention then takes two operations more.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["say_sizes"]


def say_sizes(program: "ExportedProgram") -> None:
    """Make views of ``unflatten`` into known sizes: of the others one is left open, -1."""
    import torch

    aten = torch.ops.aten
    graph = program.graph
    for node in graph.find_nodes(op="call_function", target=aten.unflatten.int):
        source = node.args[0]
        sizes = list(node.meta["val"].shape)
        unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
        begin = node.args[1] % source.meta["val"].dim()
        if any(begin <= i < begin + len(node.args[2]) for i in unknown):
            continue
        with graph.inserting_before(node):
            for i in unknown[:-1]:
                behind = i - len(sizes) if i > begin else i
                made = graph.call_function(aten.sym_size.int, (source, behind))
                made.meta["val"], sizes[i] = sizes[i], made
        if unknown:
            sizes[unknown[-1]] = -1
        node.target, node.args = aten.view.default, (source, sizes)
    program.graph_module.recompile()
