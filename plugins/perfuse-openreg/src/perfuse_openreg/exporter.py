"""Lowers a component to the device's program. It needs no device."""

import operator
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
        from perfuse.capture import capture

        dtype: torch.dtype = getattr(torch, component.precision)
        program = capture(component, dtype).run_decompositions()
        graph, weights = _Lowering(component, program).result()
        write(folder / MODEL, graph, weights)
        return folder / MODEL


class _Lowering:
    """A captured graph on its way to being data."""

    def __init__(self, component: Component, program: "ExportedProgram") -> None:
        self._component = component
        self._nodes = list(program.graph.nodes)
        self._weights: dict[str, Tensor] = {}
        self._names: dict[str, str] = {}  # of a weight's placeholder: the weight's
        self._keep(_held(program))

    def result(self) -> "tuple[Graph, dict[str, Tensor]]":
        """The graph, and the tensors that it holds by their names in it."""
        component = self._component
        inputs, operations, outputs = [], [], []
        for node in self._nodes:
            if node.op == "placeholder" and node.name not in self._names:
                inputs.append(self._value(node))
            elif node.op == "call_function" and _computes(node):
                operations.append(self._operation(node))
            elif node.op == "output":
                outputs = [self._argument(one) for one in node.args[0]]
        if len(outputs) != len(component.signature.outputs):
            raise ExportError(
                f"{component.name} returns {', '.join(component.signature.output_names)}; its "
                f"graph returns {len(outputs)} values. It must change no buffer of its own."
            )
        graph = Graph(
            component=component.name,
            precision=component.precision,
            inputs=tuple(inputs),
            weights=tuple(
                Value(name=name, dtype=_name(tensor.dtype), shape=tuple(tensor.shape))
                for name, tensor in self._weights.items()
            ),
            operations=tuple(operations),
            outputs=tuple(one.name for one in outputs if isinstance(one, Reference)),
        )
        return graph, self._weights

    def _keep(self, held: "dict[str, Tensor]") -> None:
        """Take each weight once: weights may be tied, and safetensors refuses shared memory."""
        first: dict[tuple[object, ...], str] = {}
        memory: set[int] = set()
        for name, tensor in held.items():
            key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            self._names[name] = first.setdefault(key, name)
            if self._names[name] == name:
                own = tensor.detach().contiguous()
                where = own.untyped_storage().data_ptr()
                self._weights[name] = own.clone() if where in memory else own
                memory.add(where)

    def _operation(self, node: "Node") -> Operation:
        from perfuse_openreg.kernels import KERNELS

        name = str(node.target).removeprefix("aten.")
        if name not in KERNELS:
            component = self._component
            raise ExportError(
                f"{component.name} ({component.spec.class_name}) uses {node.target}, which openreg "
                "does not have. Run this component on another backend, or add it to kernels.py."
            )
        return Operation(
            operator=name,
            arguments=tuple(self._argument(argument) for argument in node.args),
            options={
                option: self._argument(argument)
                for option, argument in node.kwargs.items()
                if option not in _HOST_OPTIONS
            },
            results=self._results(node),
        )

    def _results(self, node: "Node") -> tuple[Value | None, ...]:
        """What an operator makes; of several, the rest of the graph names those that it picks."""
        if not isinstance(node.meta["val"], tuple | list):
            return (self._value(node),)
        picked = {user.args[1]: self._value(user) for user in node.users}
        return tuple(picked.get(index) for index in range(len(node.meta["val"])))

    def _argument(self, argument: Any) -> Argument:
        import torch
        from torch.fx import Node

        if isinstance(argument, Node):
            return Reference(self._names.get(argument.name, argument.name))
        if isinstance(argument, torch.dtype):
            return DType(_name(argument))
        if isinstance(argument, list | tuple):
            return [self._argument(one) for one in argument]
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        raise ExportError(
            f"{self._component.name} gives an operator {argument!r}; openreg takes tensors, types "
            "and plain values. Run this component on another backend."
        )

    def _value(self, node: "Node") -> Value:
        fake = node.meta["val"]
        try:
            return Value(name=node.name, dtype=_name(fake.dtype), shape=tuple(fake.shape))
        except ValueError as exc:
            raise ExportError(
                f"{self._component.name} has a value that openreg cannot hold: {exc}; its memory "
                f"holds {', '.join(ITEM_SIZES)}. Run this component on another backend."
            ) from exc


def _held(program: "ExportedProgram") -> "dict[str, Tensor]":
    """Parameters, buffers and constants by the names of the graph's placeholders."""
    signature = program.graph_signature
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    everything = {**program.constants, **program.state_dict}
    return {name: everything[target] for name, target in named.items()}


def _computes(node: "Node") -> bool:
    """Neither picking one of several results nor an assertion does."""
    return node.target is not operator.getitem and "_assert" not in str(node.target)


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
