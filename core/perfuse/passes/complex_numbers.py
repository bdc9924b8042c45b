"""Complex numbers as pairs of real ones: few engines have any others.

Rotary embeddings are what models use them for (Su et al., https://arxiv.org/abs/2104.09864).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from perfuse.passes.calls import call, value

__all__ = ["real"]

_aten = torch.ops.aten
#: What moves elements, or adds them: done to both parts.
_TO_EACH = frozenset(
    ("view", "reshape", "_unsafe_view", "view_as", "unsqueeze", "squeeze", "expand", "expand_as")
    + ("slice", "select", "narrow", "cat", "stack", "split", "split_with_sizes", "chunk", "unbind")
    + ("permute", "transpose", "t", "movedim", "flatten", "unflatten", "repeat", "flip", "index")
    + ("index_select", "gather", "repeat_interleave", "clone", "contiguous", "alias", "detach")
    + ("detach_", "lift_fresh", "lift_fresh_copy", "add", "sub", "neg", "sum", "mean", "pad")
    + ("constant_pad_nd", "pad_sequence", "where", "zeros_like", "getitem")
)
_SUMS = frozenset(("add", "sub"))
_CASTS = frozenset(("to", "_to_copy", "type_as"))


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """What stands for a complex tensor: the nodes of its real and its imaginary part."""

    re: Any
    im: Any


def real(program: ExportedProgram) -> bool:
    """Compute with pairs of real tensors wherever a graph computes with complex ones.

    A graph that takes or returns complex numbers, or computes something of them for which there is no
    rule here, stays as it is: exporters name what they cannot lower.
    """
    graph = program.graph
    touched = [node for node in graph.nodes if _touches(node)]
    if not touched or not all(_has_rule(program, node) for node in touched):
        return False
    pairs: dict[Node, _Pair] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder":
            if _is_complex(value(node)):
                pairs[node] = _constant(program, node)
        elif _is_complex(value(node)) or any(one in pairs for one in node.all_input_nodes):
            with graph.inserting_before(node):
                _replaced(graph, node, pairs)
    for node in reversed(pairs):
        if node.op != "placeholder":
            graph.erase_node(node)
    return True


def _is_complex(held: Any) -> bool:
    return any(isinstance(one, Tensor) and one.is_complex() for one in pytree.tree_leaves(held))


def _touches(node: Node) -> bool:
    """Whether a node takes complex numbers, or gives them."""
    return _is_complex(value(node)) or any(_is_complex(value(one)) for one in node.all_input_nodes)


def _has_rule(program: ExportedProgram, node: Node) -> bool:
    if node.op == "placeholder":
        return _spec(program, node).kind != InputKind.USER_INPUT
    if node.op == "output" or not callable(node.target):
        return False
    if node.target is _aten._assert_tensor_metadata.default:
        return True
    name = _name(node)
    if name in _CASTS:
        return _is_complex(value(node.all_input_nodes[0]))
    if name in _SUMS:  # what is real is added to one part only
        operands = pytree.tree_leaves(list(node.args[:2]))
        return all(isinstance(one, Node) and _is_complex(value(one)) for one in operands)
    return name in _RULES or name in _TO_EACH


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _spec(program: ExportedProgram, node: Node) -> InputSpec:
    specs: list[InputSpec] = program.graph_signature.input_specs
    (spec,) = [one for one in specs if one.arg.name == node.name]
    return spec


def _constant(program: ExportedProgram, node: Node) -> _Pair:
    """A complex constant becomes a real one with a last axis of two."""
    name = str(_spec(program, node).target)
    held = program.constants if name in program.constants else program.state_dict
    tensor = held[name]
    assert isinstance(tensor, Tensor)
    held[name] = torch.view_as_real(tensor.detach().resolve_conj()).contiguous()
    node.meta["val"] = torch.view_as_real(value(node).resolve_conj())
    first = next(one for one in program.graph.nodes if one.op != "placeholder")
    with program.graph.inserting_before(first):
        return _halves(program.graph, node)


def _halves(graph: Graph, node: Node) -> _Pair:
    re = call(graph, _aten.select.int, node, -1, 0)
    return _Pair(re=re, im=call(graph, _aten.select.int, node, -1, 1))


def _replaced(graph: Graph, node: Node, pairs: dict[Node, _Pair]) -> None:
    """Put real nodes in the place of one that takes or returns complex tensors."""
    if node.target is _aten._assert_tensor_metadata.default:
        graph.erase_node(node)
        return
    args = pytree.tree_map(lambda one: pairs.get(one, one), list(node.args), is_leaf=_is_node)
    made = _made(graph, node, args)
    if isinstance(made, _Pair):
        pairs[node] = made
        return
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _is_node(one: Any) -> bool:
    return isinstance(one, Node)


def _made(graph: Graph, node: Node, args: list[Any]) -> Node | _Pair:
    """What stands for a node that is given pairs, or whose value is complex."""
    name = _name(node)
    if name in _RULES:
        return _RULES[name](graph, *args)
    if name in _CASTS:  # to a real dtype, which drops the imaginary part as PyTorch does
        pair: _Pair = args[0]
        return pair if _is_complex(value(node)) else pair.re
    real, imaginary = (_parts(args, part) for part in ("re", "im"))
    target = node.target
    assert callable(target), "what has a rule is a call"
    re = call(graph, target, *real, **node.kwargs)
    return _Pair(re=re, im=call(graph, target, *imaginary, **node.kwargs))


def _parts(args: list[Any], part: str) -> list[Any]:
    parts: list[Any] = pytree.tree_map(
        lambda one: getattr(one, part) if isinstance(one, _Pair) else one, args
    )
    return parts


def _times(graph: Graph, one: Any, other: Any) -> _Pair:
    """(a + bi)(c + di) = (ac - bd) + (ad + bc)i."""
    if not isinstance(one, _Pair):
        one, other = other, one
    if not isinstance(other, _Pair):
        return _Pair(re=_mul(graph, one.re, other), im=_mul(graph, one.im, other))
    ac, bd = _mul(graph, one.re, other.re), _mul(graph, one.im, other.im)
    ad, bc = _mul(graph, one.re, other.im), _mul(graph, one.im, other.re)
    return _Pair(re=call(graph, _aten.sub.Tensor, ac, bd), im=call(graph, _aten.add.Tensor, ad, bc))


def _mul(graph: Graph, one: Node, other: Any) -> Node:
    return call(graph, _aten.mul.Tensor, one, other)


def _polar(graph: Graph, radius: Node, angle: Node) -> _Pair:
    """r·cos φ + r·sin φ·i."""
    re = _mul(graph, radius, call(graph, _aten.cos.default, angle))
    return _Pair(re=re, im=_mul(graph, radius, call(graph, _aten.sin.default, angle)))


def _conjugate(graph: Graph, one: _Pair) -> _Pair:
    return _Pair(re=one.re, im=call(graph, _aten.neg.default, one.im))


_RULES: dict[str, Callable[..., Node | _Pair]] = {
    "mul": _times,
    "polar": _polar,
    "complex": lambda graph, re, im: _Pair(re=re, im=im),
    "view_as_complex": _halves,
    "view_as_real": lambda graph, one: call(graph, _aten.stack.default, [one.re, one.im], -1),
    "real": lambda graph, one: one.re,
    "imag": lambda graph, one: one.im,
    "conj": _conjugate,
    "_conj": _conjugate,
    "sym_size": lambda graph, one, axis: call(graph, _aten.sym_size.int, one.re, axis),
}
