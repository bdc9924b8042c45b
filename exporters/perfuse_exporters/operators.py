"""Asks a converter about the operators of a captured graph, one call of each, not the whole graph."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from perfuse.errors import ExportError
from perfuse.plugins import said

__all__ = ["refused"]


def refused(
    program: ExportedProgram, convert: Callable[[ExportedProgram], object]
) -> dict[str, str]:
    """The operators that a converter cannot take, each with what it says and where the model uses it.

    It is given one call of every operator at once, and halves of them only where it fails: a second
    or two, whatever the size of the model. Where it can take each half and not both together, they
    are reported together.
    """
    calls = list(_calls(program))
    return _refused(calls, convert) if calls else {}


def _refused(calls: list[Node], convert: Callable[[ExportedProgram], object]) -> dict[str, str]:
    try:
        convert(_program(calls))
    except Exception as exc:  # noqa: BLE001 - converters raise anything
        why = str(exc) if isinstance(exc, ExportError) else said(exc)
    else:
        return {}
    if len(calls) == 1:
        return {str(calls[0].target): why + _where(calls[0])}
    half = len(calls) // 2
    found = _refused(calls[:half], convert) | _refused(calls[half:], convert)
    return found or {" with ".join(str(call.target) for call in calls): why}


def _calls(program: ExportedProgram) -> Iterator[Node]:
    """A call of each operator, again for other ranks or dtypes of what it is given."""
    seen = set()
    for node in program.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not _tensors(node):
            continue
        given = [_tensors(one) for one in node.all_input_nodes]
        key = (node.target, *((t.dtype, t.ndim) for tensors in given for t in tensors))
        if key not in seen:
            seen.add(key)
            yield node


def _tensors(node: Node) -> list[Tensor]:
    value = _value(node)
    values = value if isinstance(value, list | tuple) else [value]
    return [tensor for tensor in values if isinstance(tensor, Tensor)]


def _where(node: Node) -> str:
    """The line of the model that the call is from."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    files = [line for line in lines if line.startswith("File ")]
    if not files:
        return ""
    path, line = files[-1].split('"')[1], files[-1].split("line ")[1].split(",")[0]
    return f" ({path.rpartition('/')[2]}:{line})"


class _Calls(nn.Module):
    """Makes calls that do not depend on each other: what a call is given is an input."""

    def __init__(self, calls: list[Node]) -> None:
        super().__init__()
        self.calls = calls
        self.given = [
            node
            for call in calls
            for node in call.all_input_nodes
            if isinstance(_value(node), Tensor)
        ]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        rest = iter(inputs)
        for call in self.calls:
            mine = {
                node: next(rest)
                for node in call.all_input_nodes
                if isinstance(_value(node), Tensor)
            }
            args, kwargs = map_arg((call.args, call.kwargs), partial(_given, tensors=mine))
            assert isinstance(call.target, torch._ops.OpOverload)
            made = call.target(*args, **kwargs)
            made = made if isinstance(made, list | tuple) else [made]
            found += [tensor for tensor in made if isinstance(tensor, Tensor)]
        return tuple(found)


def _value(node: Node) -> Any:
    return node.meta.get("val")


def _given(node: Node, tensors: Mapping[Node, Tensor]) -> Any:
    """What stands for a node among a call's arguments: an input, or a size."""
    return tensors[node] if node in tensors else _size(_value(node))


def _size(size: Any) -> Any:
    return size.node.hint if isinstance(size, torch.SymInt) else size


def _program(calls: list[Node]) -> ExportedProgram:
    module = _Calls(calls)
    # Memory that nobody touches takes no room.
    inputs = [
        torch.empty([_size(size) for size in value.shape], dtype=value.dtype)
        for value in map(_value, module.given)
    ]
    with torch.no_grad():
        return torch.export.export(module, tuple(inputs), strict=False)
