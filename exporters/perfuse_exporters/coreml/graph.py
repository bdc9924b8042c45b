"""A component's graph as coremltools takes it: few operators, none that it refuses."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true

from perfuse.backend import Component
from perfuse.capture import trace
from perfuse.errors import InputError

__all__ = ["lower", "simplified"]

_aten = torch.ops.aten

_ENLARGE = _aten.upsample_nearest2d.vec

#: What says something about a tensor and computes nothing.
_ASSERTIONS = (
    _aten._assert_tensor_metadata.default,
    _aten._assert_scalar.default,
    _aten.sym_constrain_range.default,
    _aten.sym_constrain_range_for_size.default,
)


def lower(component: Component, module: nn.Module) -> ExportedProgram:
    """Capture a module that has the component's signature, in float32.

    Raises:
        ExportError: torch.export cannot capture it.
        InputError: it cannot take its several sizes.
    """
    program = simplified(trace(component, module, torch.float32))
    if any(_symbolic(node.args[1]) for node in program.graph.nodes if node.target is _ENLARGE):
        raise InputError(
            f"{component.name} was to be exported to Core ML for several sizes, of which one is "
            "odd where it is halved; Core ML can only double again. Give sizes that are multiples "
            "of a higher power of two, or one size."
        )
    return program


def _symbolic(size: Any) -> bool:
    return size is not None and any(isinstance(one, torch.fx.Node) for one in size)


def simplified(program: ExportedProgram) -> ExportedProgram:
    """The program in functional operators, without what computes nothing.

    Attention, convolutions, linear layers and activations stay as they are: coremltools has one
    operation, or a few, for each, and what they decompose into is longer.
    """
    program = program.run_decompositions(_decompositions())
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is _aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _ASSERTIONS:
            graph.erase_node(node)
    _enlarge_by_factors(graph)
    graph.eliminate_dead_code()
    _name_outputs_once(program)
    program.graph_module.recompile()
    return program


def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    return {_aten.group_norm.default: _group_norm}


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Group normalisation (Wu & He 2018): every group is one long instance.

    coremltools would write it with means and squares, and in float16 the square of anything over
    255 is infinite. One operation leaves it to the engine to add up in what does not overflow. The
    last axis is kept, since the Neural Engine takes none that is longer than 16384.
    """
    grouped = x.reshape(x.shape[0], groups, -1, x.shape[-1])
    normal: Tensor = _aten.instance_norm.default(
        grouped, None, None, None, None, True, 0.0, eps, False
    )
    normal = normal.reshape(x.shape)
    shape = (1, x.shape[1], *[1] * (x.dim() - 2))
    if weight is not None:
        normal = normal * weight.reshape(shape)
    return normal if bias is None else normal + bias.reshape(shape)


def _enlarge_by_factors(graph: torch.fx.Graph) -> None:
    """Double a picture, and crop it, where the graph says to what size to enlarge it.

    Core ML has a factor only, and a broken one would be rounded. What was halved from an odd size
    has one row or column too many when it is doubled, and the nearest pixels are the same.
    """
    for node in list(graph.nodes):
        if node.target is not _ENLARGE or node.args[1] is None:
            continue
        before, after = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
        surplus = [2 * old - new for old, new in zip(before, after, strict=True)]
        if not all(statically_known_true(n == 0) or statically_known_true(n == 1) for n in surplus):
            continue
        users, cropped = list(node.users), node
        node.args = (node.args[0], None, [2.0, 2.0])
        for axis, n in enumerate(surplus, start=2):
            if statically_known_true(n == 1):
                with graph.inserting_after(cropped):
                    cropped = graph.call_function(_aten.slice.Tensor, (cropped, axis, 0, -1))
                cropped.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, cropped)


def _name_outputs_once(program: ExportedProgram) -> None:
    """Give every output a node of its own: a file can give a value one name only.

    A multiplication by one, since coremltools takes a copy for the value itself.
    """
    output = program.graph.output_node()
    values: list[torch.fx.Node] = []
    for value in output.args[0]:
        if value in values or value.op == "placeholder":
            with program.graph.inserting_before(output):
                copy = program.graph.call_function(_aten.mul.Tensor, (value, 1))
            copy.meta = dict(value.meta)
            value = copy
        values.append(value)
    output.args = (tuple(values),)
    for spec, value in zip(program.graph_signature.output_specs, values, strict=True):
        spec.arg.name = value.name
