"""Lowers a component to the device's program. It needs no device."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse import Component, Exporter
from perfuse.backend import PRECISIONS
from perfuse.errors import ExportError

from perfuse_openreg.graph import Argument, DType, Graph, Operation, Reference, Value, write
from perfuse_openreg.hardware import ITEM_SIZES

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["OpenRegExporter"]

MODEL = "model.openreg"
# Where a tensor lies is the device's own affair.
_HOST_OPTIONS = ("device", "layout", "memory_format", "pin_memory")


class OpenRegExporter(Exporter):
    """Captures with perfuse's own capture, and writes each operator as data."""

    format: ClassVar[str] = "openreg"

    def export(self, component: Component, folder: Path) -> Path:
        """Write ``model.openreg``, for the one size that is fixed."""
        free = [dim for dim in component.spec.signature.dims if dim not in component.static]
        if free:
            raise ExportError(
                f"{component.name} was to be exported to openreg for any {', '.join(free)}; it "
                "takes one size. Fix them: --height H --width W --batch B."
            )
        if component.precision not in PRECISIONS:
            raise ExportError(
                f"{component.name} was to be exported to openreg in {component.precision}; choose "
                f"one of {', '.join(PRECISIONS)}."
            )
        component.spec.check_dims(component.static)
        import torch
        from perfuse_exporters.capture import capture

        dtype: torch.dtype = getattr(torch, component.precision)
        graph, weights = _lower(component, capture(component, dtype).run_decompositions())
        write(folder / MODEL, graph, weights)
        return folder / MODEL


def _lower(component: Component, program: "ExportedProgram") -> "tuple[Graph, dict[str, Tensor]]":
    """The captured graph as data, and the tensors that it holds by their names in it."""
    tensors = _held(program)
    weights: dict[str, Tensor] = {}
    inputs, operations, outputs = [], [], []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in tensors:
            weights[node.name] = tensors[node.name].detach().contiguous()
        elif node.op == "placeholder":
            inputs.append(_value(component, node))
        elif node.op == "call_function" and _makes_something(node):
            operations.append(_operation(component, node))
        elif node.op == "output":
            outputs = [_argument(component, one) for one in node.args[0]]
    if len(outputs) != len(component.signature.outputs):
        raise ExportError(
            f"{component.name} returns {', '.join(component.signature.output_names)}; its graph "
            f"returns {len(outputs)} values. It must change no buffer of its own."
        )
    graph = Graph(
        component=component.name,
        precision=component.precision,
        inputs=tuple(inputs),
        weights=tuple(
            Value(name=name, dtype=_name(tensor.dtype), shape=tuple(tensor.shape))
            for name, tensor in weights.items()
        ),
        operations=tuple(operations),
        outputs=tuple(one.name for one in outputs if isinstance(one, Reference)),
    )
    return graph, weights


def _held(program: "ExportedProgram") -> "Mapping[str, Tensor]":
    """Parameters, buffers and constants by the names of the graph's placeholders."""
    signature = program.graph_signature
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    everything = {**program.constants, **program.state_dict}
    # Of tied weights there is one, under one placeholder: safetensors would refuse the second.
    return {name: everything[target] for name, target in named.items()}


def _makes_something(node: "Node") -> bool:
    """Whether it computes: picking one of several results does not, nor does an assertion."""
    import operator

    return node.target is not operator.getitem and "_assert" not in str(node.target)


def _operation(component: Component, node: "Node") -> Operation:
    from perfuse_openreg.kernels import KERNELS

    name = str(node.target).removeprefix("aten.")
    if name not in KERNELS:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) uses {node.target}, which openreg "
            "does not have. Run this component on another backend, or add it to kernels.py."
        )
    return Operation(
        operator=name,
        arguments=tuple(_argument(component, argument) for argument in node.args),
        options={
            option: _argument(component, argument)
            for option, argument in node.kwargs.items()
            if option not in _HOST_OPTIONS
        },
        results=_results(component, node),
    )


def _results(component: Component, node: "Node") -> tuple[Value | None, ...]:
    """What an operator makes; of several, the rest of the graph names those that it picks."""
    if not isinstance(node.meta["val"], tuple | list):
        return (_value(component, node),)
    picked = {user.args[1]: _value(component, user) for user in node.users}
    return tuple(picked.get(index) for index in range(len(node.meta["val"])))


def _argument(component: Component, argument: Any) -> Argument:
    import torch
    from torch.fx import Node

    if isinstance(argument, Node):
        return Reference(argument.name)
    if isinstance(argument, torch.dtype):
        return DType(_name(argument))
    if isinstance(argument, list | tuple):
        return [_argument(component, one) for one in argument]
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    raise ExportError(
        f"{component.name} gives an operator {argument!r}; openreg takes tensors, types and "
        "plain values. Run this component on another backend."
    )


def _value(component: Component, node: "Node") -> Value:
    fake = node.meta["val"]
    try:
        return Value(name=node.name, dtype=_name(fake.dtype), shape=tuple(fake.shape))
    except ValueError as exc:
        raise ExportError(
            f"{component.name} has a value that openreg cannot hold: {exc}; its memory holds "
            f"{', '.join(ITEM_SIZES)}. Run this component on another backend."
        ) from exc


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
