"""Tables computed of nothing but numbers are computed once, by PyTorch.

The frequencies of a timestep's embedding are such: exp(-i · log(10000) / n). An exporter or an engine
that computes them with an exponential of its own is off in the last bit, and a timestep of 1000
makes that 6e-5 in the phase.
"""

from itertools import count

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from perfuse.passes.calls import value

__all__ = ["computed"]

#: What libraries compute with different last bits.
_ROUNDED = frozenset(
    ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "sqrt", "rsqrt", "reciprocal")
    + ("sin", "cos", "tan", "tanh", "sigmoid", "erf", "linspace", "logspace")
)
#: Elements of a table that may be in the graph: one that an engine computes takes no space in a file.
_LARGEST = 1 << 16


def computed(program: ExportedProgram) -> bool:
    """Replace each such table by its values; returns whether there was one.

    Only what depends on neither an input nor a weight, has a known size, and has a function in it
    that libraries round differently. Everything else stays as it is.
    """
    held: dict[Node, Tensor] = {}
    rounded: set[Node] = set()
    for node in program.graph.nodes:
        sources = node.all_input_nodes
        if _writes(node) and any(one in held for one in sources):
            return False  # and so may change what was computed before
        if _may_be(node) and all(one in held for one in sources):
            args, kwargs = map_arg((node.args, node.kwargs), held.__getitem__)
            held[node] = node.target(*args, **kwargs)
            if _name(node) in _ROUNDED or not rounded.isdisjoint(sources):
                rounded.add(node)
    for node in held:
        _without_checks(node)
    tables = [
        node for node in held if node in rounded and any(one not in held for one in node.users)
    ]
    for node in tables:
        node.replace_all_uses_with(_constant(program, node, held[node]))
    return bool(tables)


def _may_be(node: Node) -> bool:
    """Whether a node makes one small real tensor, always the same of the same arguments."""
    made = value(node)
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
        and not _writes(node)
        and isinstance(made, Tensor)
        and not made.is_complex()
        and all(isinstance(size, int) for size in made.shape)
        and made.numel() <= _LARGEST
        and not any(isinstance(one, torch.SymInt) for one in pytree.tree_leaves(node.args))
    )


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _without_checks(node: Node) -> None:
    """Leave out what was checked at capture: it would keep what a table was computed of."""
    for user in list(node.users):
        if user.target is torch.ops.aten._assert_tensor_metadata.default:
            node.graph.erase_node(user)


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _constant(program: ExportedProgram, node: Node, table: Tensor) -> Node:
    """Give the graph a constant, before its inputs: ``torch.export`` has this order."""
    specs = program.graph_signature.input_specs
    place = next(i for i, one in enumerate(specs) if one.kind == InputKind.USER_INPUT)
    taken = {*program.constants, *program.state_dict}
    target = next(name for i in count() if (name := f"table_{i}") not in taken)
    inputs = [one for one in program.graph.nodes if one.op == "placeholder"]
    with program.graph.inserting_before(inputs[place]):
        made: Node = program.graph.placeholder(f"c_{target}")
    made.meta["val"] = value(node)
    program.constants[target] = table.contiguous()
    arg = TensorArgument(name=made.name)
    specs.insert(place, InputSpec(InputKind.CONSTANT_TENSOR, arg, target))
    return made
