"""A component in pieces: its graph is cut, and each piece is compiled while its turn lasts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse.arrays import is_torch, to_numpy
from perfuse.backend import (
    Array,
    Component,
    ExecutionReport,
    InPieces,
    Node,
    Piece,
    WeightMap,
    Windowed,
    cut,
    most_of,
)
from perfuse.errors import ExecutionError
from perfuse.run import Apart
from perfuse.sources import read_map
from perfuse_exporters.openvino.engine import import_openvino, said
from perfuse_exporters.openvino.weights import bind, rebind

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["OpenVinoPieces"]


class OpenVinoPieces(InPieces["tuple[ov.CompiledModel, Sequence[Any]]"]):
    """Compiled models of pieces of one graph, on a CPU."""

    def __init__(
        self,
        component: Component,
        path: Path,
        apart: Apart | None,
        *,
        room: int,
        read: "Callable[[], ov.Model]",
        compile: "Callable[[ov.Model], ov.CompiledModel]",
    ) -> None:
        """Cut the graph; compile nothing.

        Args:
            component: What it computes.
            path: The graph's file.
            apart: What reads its weights; ``None`` where they are in a file beside it.
            room: The bytes of weights that may be loaded together.
            read: Reads the graph.
            compile: Compiles a model for the device.
        """
        self._apart, self._path = apart, path
        # Which constants of an export are the weights that adapters change.
        self._known = read_map(path) if component.build is None else None
        self._read, self._compile = read, compile
        graph = _Graph(read(), component, apart)
        pieces = cut(
            graph.nodes,
            sizes=graph.sizes,
            inputs=component.signature.input_names,
            outputs=component.signature.output_names,
            most=most_of(graph.sizes, room),
        )
        super().__init__(component, pieces, room)
        self._dtypes = graph.dtypes

    def _entering(self, name: str, array: Array) -> Array:
        plain = to_numpy(array) if is_torch(array) else np.asarray(array)
        return np.array(plain, dtype=self._dtypes[name], order="C")

    def _load(
        self, piece: Piece, values: Mapping[str, Array]
    ) -> "tuple[ov.CompiledModel, Sequence[Any]]":
        openvino = import_openvino()
        whole = self._read()
        model = _Graph(whole, self._component, self._apart).model(piece)
        held: Sequence[Any] = ()
        if self._apart is not None:
            weights = self._apart.weights
            constants = [weights.constants[name] for name in piece.weights]
            sizes = {constant.tensor: constant.size for constant in constants}
            held = bind(openvino, model, weights, Windowed(self._apart.read, sizes))
        elif self._known is not None and self._component.changes is not None:
            there = {one.get_friendly_name() for one in model.get_ordered_ops()}
            known = {name: one for name, one in self._known.constants.items() if name in there}
            changes = self._component.changes
            held = rebind(openvino, model, WeightMap(constants=known), changes)
        return self._compile(model), held

    def _run(
        self, loaded: "tuple[ov.CompiledModel, Sequence[Any]]", values: Mapping[str, Array]
    ) -> Sequence[Array]:
        compiled, _ = loaded
        openvino = import_openvino()
        request = compiled.create_infer_request()
        for index, array in enumerate(values.values()):
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
        try:
            request.infer()
        except RuntimeError as exc:
            raise ExecutionError(
                f"{self._component.name} on openvino:CPU failed; OpenVINO said: {said(exc)}."
            ) from exc
        return [request.get_output_tensor(i).data.copy() for i in range(len(compiled.outputs))]

    def report(self) -> ExecutionReport:
        import openvino

        return ExecutionReport(
            device="CPU",
            precision=self._component.precision,
            engine=f"openvino {openvino.get_version()}",
            details={"file": str(self._path), **self._turns.details},
        )


class _Graph:
    """The operations of a model under names that are the same each time it is read."""

    def __init__(self, model: "ov.Model", component: Component, apart: Apart | None) -> None:
        self._model = model
        #: Names to the outputs of operations.
        self._outputs: dict[str, Any] = {}
        #: The bytes of each weight.
        self.sizes: dict[str, int] = {}
        #: The dtypes of the inputs.
        self.dtypes: dict[str, np.dtype[Any]] = {}
        constants = apart.weights.constants if apart is not None else {}
        names: dict[tuple[str, int], str] = {}
        self._ops, self.nodes = list[Any](), list[Node]()
        inputs = {port.get_node().get_name(): port for port in model.inputs}
        results = {
            (source.get_node().get_name(), source.get_index()): name
            for name in component.signature.output_names
            for source in (model.output(name).get_node().input_value(0),)
        }
        for at, op in enumerate(model.get_ordered_ops()):
            kind, own = op.get_type_name(), op.get_name()
            if kind == "Result":
                continue
            made = [f"{at}/{i}" for i in range(op.get_output_size())]
            if kind == "Parameter":
                weight = op.get_friendly_name()
                if weight in constants:
                    made = [weight]
                    self.sizes[weight] = constants[weight].size
                else:
                    port = inputs[own]
                    asked = set(port.get_names()) & set(component.signature.input_names)
                    made = [asked.pop()]
                    self.dtypes[made[0]] = np.dtype(port.get_element_type().to_dtype())
            elif kind == "Constant" and apart is None:
                made = [f"constant/{at}"]
                self.sizes[made[0]] = op.get_byte_size()
            made = [results.get((own, i), name) for i, name in enumerate(made)]
            names |= {(own, i): name for i, name in enumerate(made)}
            self._outputs |= {name: op.output(i) for i, name in enumerate(made)}
            if kind not in ("Parameter", "Constant"):
                reads = [(v.get_node().get_name(), v.get_index()) for v in op.input_values()]
                node = Node(
                    reads=tuple(names[v] for v in reads),
                    makes=tuple(made),
                    measures=kind == "ShapeOf",
                )
                self.nodes.append(node)

    def model(self, piece: Piece) -> "ov.Model":
        """A piece as a model: what it reads of other pieces are inputs in its order."""
        from openvino import Model, opset13

        outputs = [self._outputs[name] for name in piece.outputs]
        inputs = []
        for name in piece.inputs:
            output = self._outputs[name]
            if output.get_node().get_type_name() == "Parameter":
                inputs.append(output.get_node())
                continue
            shape, kind = output.get_partial_shape(), output.get_element_type()
            inputs.append(opset13.parameter(shape, kind))
            for target in output.get_target_inputs():
                target.replace_source_output(inputs[-1].output(0))
        results = [opset13.result(output) for output in outputs]
        weights = [self._outputs[name].get_node() for name in piece.weights]
        given = [one for one in weights if one.get_type_name() == "Parameter"]
        return Model(results, [*inputs, *given], "piece")
