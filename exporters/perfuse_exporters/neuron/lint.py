"""Checks a captured graph for what the Neuron compiler documents as unsupported.

It compiles nothing. ``operators`` holds what is documented, and where.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from perfuse.backend import Component
from perfuse_exporters.neuron.graph import core_graph
from perfuse_exporters.neuron.operators import (
    AS_INT32,
    DOCUMENTED,
    FLOATING,
    INTEGER_AS_FLOAT,
    LARGEST_OUTPUT,
    LOWERED,
    MOVES,
)

__all__ = ["Finding", "lint"]

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
#: Assertions that torch.export leaves in a graph; they compute nothing.
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something in a graph that the compiler refuses, or computes otherwise than it is written."""

    #: ``"operator"``, ``"type"``, ``"dynamic"``, ``"size"``: refused. ``"int64"``: computed in 32 bits.
    kind: str
    #: An operator or an input: ``"aten.sort"``.
    what: str
    #: The line of the model that caused it: ``"perfuse/models/resnet.py:48"``.
    where: str
    reason: str

    @property
    def stops(self) -> bool:
        """Whether the graph will not compile, as far as the documentation tells."""
        return self.kind != "int64"


def lint(program: ExportedProgram, component: Component) -> list[Finding]:
    """Everything that the documentation speaks against, each once a line, in the graph's order.

    Args:
        program: The component as captured, in any of torch.export's dialects.
        component: What it was captured from.
    """
    findings = [
        *_dynamic(program, component),
        *(
            finding
            for node in core_graph(program).graph.nodes
            if (name := _name(node)) is not None
            for finding in (*_operator(node, name), *_types(node, name), *_size(node))
        ),
    ]
    return list({(one.kind, one.what, one.where): one for one in findings}.values())


def _dynamic(program: ExportedProgram, component: Component) -> Iterator[Finding]:
    """Inputs with a dimension that is no number."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    tensors = component.spec.signature.inputs
    for tensor, name in zip(tensors, program.graph_signature.user_inputs, strict=True):
        shape = values[str(name)].shape
        free = [
            str(dim)
            for dim, size in zip(tensor.shape, shape, strict=True)
            if not isinstance(size, int)
        ]
        if free:
            yield Finding(
                kind="dynamic",
                what=tensor.name,
                where=f"an input of {component.name}",
                reason=f"{', '.join(free)} must be fixed (NCC_EMOD025)",
            )


def _operator(node: Node, name: str) -> Iterator[Finding]:
    """Operators that no page names, and those that begin a size which the values decide."""
    if _decided(node) - {size for other in node.all_input_nodes for size in _decided(other)}:
        yield _found(node, "dynamic", "the size of its result depends on the values (NCC_EMOD025)")
    if name not in LOWERED:
        yield _found(node, "operator", "it is in none of the compiler's lists")
        return
    unnamed = [xla for xla in LOWERED[name] if xla not in DOCUMENTED]
    if unnamed:
        yield _found(
            node,
            "operator",
            f"it becomes {', '.join(unnamed)}, which is in none of the compiler's lists",
        )


def _types(node: Node, name: str) -> Iterator[Finding]:
    """Types that a NeuronCore does not compute in."""
    made = _made(node)
    for dtype in {value.dtype for value in made}:
        if dtype.is_complex:
            yield _found(node, "type", f"{_plain(dtype)}: no complex numbers (NCC_EVRF004)")
        elif dtype.is_floating_point and _plain(dtype) not in FLOATING:
            yield _found(
                node, "type", f"{_plain(dtype)}: it computes in {', '.join(FLOATING)} (NCC_ESPP004)"
            )
    read = [value for other in node.all_input_nodes for value in _made(other)]
    if name not in MOVES and any(value.dtype == torch.int64 for value in (*made, *read)):
        lossy = [
            f"{xla} {INTEGER_AS_FLOAT[xla]}"
            for xla in LOWERED.get(name, ())
            if xla in INTEGER_AS_FLOAT
        ]
        yield _found(node, "int64", "; ".join(lossy) or AS_INT32)


def _size(node: Node) -> Iterator[Finding]:
    for value in _made(node):
        if all(isinstance(size, int) for size in value.shape):
            held = value.numel() * value.element_size()
            if held > LARGEST_OUTPUT:
                yield _found(
                    node, "size", f"it holds {held / 2**30:.1f} GiB; 4 are allowed (NCC_EVRF024)"
                )


def _found(node: Node, kind: str, reason: str) -> Finding:
    what = node.target._schema.name.replace("::", ".")  # type: ignore[union-attr]
    return Finding(kind=kind, what=what, where=_where(node), reason=reason)


def _name(node: Node) -> str | None:
    """An operator's name without its overload; ``None`` for a node that computes no tensor."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    space, _, name = node.target._schema.name.partition("::")
    if name in _CHECKS or name.startswith("sym_"):
        return None
    return name if space == "aten" else node.target._schema.name


def _made(node: Node) -> list[Tensor]:
    """What a node returns: tensors without values."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return [one for one in values if isinstance(one, Tensor)]


def _decided(node: Node) -> set[str]:
    """A node's data-dependent output sizes, which torch calls u0, u1, …"""
    sizes = (str(size) for value in _made(node) for size in value.shape)
    return {size for size in sizes if size.startswith("u")}


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _where(node: Node) -> str:
    """The innermost line of our models, and in brackets that of the library that it calls."""
    frames = [
        (path.replace("\\", "/"), line)
        for path, line in _FRAME.findall(node.meta.get("stack_trace") or "")
        if "/torch/" not in path.replace("\\", "/")
    ]
    if not frames:
        return ""
    ours = [f"{_short(path)}:{line}" for path, line in frames if "/perfuse/models/" in path]
    last = f"{_short(frames[-1][0])}:{frames[-1][1]}"
    if not ours or ours[-1] == last:
        return last
    return f"{ours[-1]} ({last})"


def _short(path: str) -> str:
    """A path from its package on."""
    for start in ("/site-packages/", "/dist-packages/"):
        if start in path:
            return path.rpartition(start)[2]
    head, found, tail = path.rpartition("/perfuse/models/")
    return f"perfuse/models/{tail}" if found else path.rpartition("/")[2] or head
