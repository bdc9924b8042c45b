"""A component in an ONNX Runtime session: as little as possible happens between calls."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from perfuse.backend import Component, ExecutionReport, Program, StoredTensor
from perfuse.errors import ExecutionError
from perfuse.spec import Signature
from perfuse_onnxruntime import borders
from perfuse_onnxruntime.borders import Array
from perfuse_onnxruntime.engine import import_onnxruntime

__all__ = ["OnnxProgram"]

Shapes = tuple[tuple[int, ...], ...]
#: Sets of output buffers to keep per shape; beyond that, memory is allocated for each call.
_KEPT = 3
#: How many shapes to keep buffers for.
_SHAPES = 8


class OnnxProgram(Program):
    """A session with its buffers.

    Inputs are read where they are; outputs are written into buffers that are used again only once
    nobody holds the arrays that were returned on them. So an output may be the next call's input,
    and one that is kept keeps its values.
    """

    concurrent = True  # one call after the other

    def __init__(
        self,
        session: Any,
        component: Component,
        path: Path,
        device: str,
        weights: Sequence[StoredTensor] = (),
    ) -> None:
        """Of a session.

        Args:
            session: The ``onnxruntime.InferenceSession``.
            component: What it computes.
            path: The file that it is made of.
            device: Where it runs.
            weights: What the session reads, so that it stays.
        """
        self._weights = weights
        self.signature: Signature = component.signature
        self._component = component
        self._session = session
        self._path = path
        self._device = device
        self._lock = Lock()
        where = str(path)
        self._inputs = borders.inputs(self.signature, session.get_inputs(), where=where)
        self._outputs = borders.outputs(self.signature, session.get_outputs(), where=where)
        self._names = self.signature.input_names
        self._converters: list[tuple[str, str, Callable[[Any], Array]]] = [
            (border.name, border.node, borders.converter(border, tensor))
            for border, tensor in zip(self._inputs, self.signature.inputs, strict=True)
        ]
        self._binding = session.io_binding()
        self._bound: dict[str, Array] = {}
        # Files of other exporters may have fixed sizes, and they have no manifest.
        static = {**self._declared_sizes(), **component.static}
        self._component = dataclasses.replace(component, static=static)
        self.signature = self._component.signature
        #: Shapes of the inputs that were checked, with their buffers.
        self._pools: dict[Shapes, _Pool] = {}

    def __call__(self, **inputs: Any) -> dict[str, Array]:
        with self._lock:
            if self._session is None:
                raise ExecutionError(
                    f"{self._component.name} was called after close(). Prepare it again."
                )
            if len(inputs) != len(self._names):
                self.signature.bind(inputs, component=self._component.name)
            try:
                shapes: Shapes = tuple([inputs[name].shape for name in self._names])
                pool = self._pools.get(shapes)
            except (KeyError, AttributeError, TypeError):
                pool = None
            if pool is None:
                pool = self._new_pool(inputs)
            return self._run(inputs, pool)

    def _run(self, inputs: dict[str, Any], pool: "_Pool") -> dict[str, Array]:
        binding, bound = self._binding, self._bound
        for name, node, convert in self._converters:
            array = convert(inputs[name])
            # The memory of the last call is bound already; its content may have changed.
            if bound.get(node) is not array:
                binding.bind_cpu_input(node, array)
                bound[node] = array
        buffers = pool.take()
        try:
            for border, (_, value) in zip(self._outputs, buffers, strict=True):
                binding.bind_ortvalue_output(border.node, value)
            self._session.run_with_iobinding(binding)
        except Exception as exc:  # every status of the engine is a class of its own
            raise self._failed(exc) from exc
        return {
            border.name: array if array.dtype == np.float32 else _widen(array)
            for border, (array, _) in zip(self._outputs, buffers, strict=True)
        }

    def _new_pool(self, inputs: dict[str, Any]) -> "_Pool":
        """Check inputs of a shape that was not seen before, and make their buffers.

        Raises:
            InputError: they do not fit the signature, or the sizes that the file was made for.
            ExecutionError: the engine failed.
        """
        inputs = {name: np.asarray(value) for name, value in inputs.items()}
        component = self._component
        dims = component.spec.signature.bind(inputs, component=component.name)
        component.check_dims(dims)
        shapes = self._output_shapes(dims, inputs)
        while len(self._pools) >= _SHAPES:
            del self._pools[next(iter(self._pools))]
        key = tuple(inputs[name].shape for name in self._names)
        pool = self._pools[key] = _Pool(
            [(shape, border.dtype) for shape, border in zip(shapes, self._outputs, strict=True)]
        )
        return pool

    def _declared_sizes(self) -> dict[str, int]:
        """The sizes that the file itself fixes, by the signature's names."""
        return {
            name: size
            for border, tensor in zip(
                self._inputs, self._component.spec.signature.inputs, strict=True
            )
            for name, size in zip(tensor.shape, border.shape, strict=False)
            if isinstance(name, str) and size is not None
        }

    def _output_shapes(self, dims: Mapping[str, int], inputs: Mapping[str, Array]) -> Shapes:
        """The shapes of the outputs: from the signature, or, if it does not fix them, from a run."""
        resolved = [tensor.resolve(dims) for tensor in self.signature.outputs]
        if all(isinstance(size, int) for shape in resolved for size in shape):
            return tuple(tuple(int(size) for size in shape) for shape in resolved)
        feed = {node: convert(inputs[name]) for name, node, convert in self._converters}
        try:
            arrays = self._session.run([border.node for border in self._outputs], feed)
        except Exception as exc:
            raise self._failed(exc) from exc
        return tuple(array.shape for array in arrays)

    def _failed(self, exc: Exception) -> ExecutionError:
        return ExecutionError(
            f"{self._component.name} was to run on onnxruntime:{self._device}; the engine said: "
            f"{' '.join(str(exc).split())}. If memory ran out, use a smaller size or batch."
        )

    def report(self) -> ExecutionReport:
        """The providers that took part; on other devices than the CPU, the nodes it took over."""
        onnxruntime = import_onnxruntime()

        if self._session is None:
            raise ExecutionError(f"{self._component.name} was closed; it has nothing to report.")
        halves = any(border.dtype == np.float16 for border in (*self._inputs, *self._outputs))
        return ExecutionReport(
            device=self._device,
            precision="float16" if halves else "float32",
            engine=f"onnxruntime {onnxruntime.__version__}",
            fallbacks=_fallbacks(self._session, self._device),
            details={
                "providers": tuple(self._session.get_providers()),
                "threads": self._session.get_session_options().intra_op_num_threads,
                "file": str(self._path),
            },
        )

    def close(self) -> None:
        with self._lock:
            self._bound.clear()
            self._pools.clear()
            self._binding = self._session = None
            self._weights = ()


class _Pool:
    """Output buffers of one set of shapes."""

    def __init__(self, tensors: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        self._tensors = tensors
        self._sets: list[list[tuple[Array, Any]]] = []
        self._references = 0

    def take(self) -> list[tuple[Array, Any]]:
        """For each output a buffer that no caller holds, and the engine's view of it."""
        for i, buffers in enumerate(self._sets):
            # A caller's reference, a view of it or a binding as an input all count.
            if all(sys.getrefcount(array) <= self._references for array, _ in buffers):
                # To the end: the longest unused comes first.
                self._sets.append(self._sets.pop(i))
                return buffers
        made = self._make()
        if len(self._sets) < _KEPT:
            self._sets.append(made)
        return made

    def _make(self) -> list[tuple[Array, Any]]:
        from onnxruntime import OrtValue

        buffers = []
        for shape, dtype in self._tensors:
            array = np.empty(shape, dtype)
            buffers.append((array, OrtValue.ortvalue_from_numpy(array)))
            del array
        self._references = max(sys.getrefcount(array) for array, _ in buffers)
        return buffers


def _widen(array: Array) -> Array:
    """A copy of an output for the caller, in float32 if it is floating-point."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array.copy()


def _fallbacks(session: Any, device: str) -> tuple[str, ...]:
    """The nodes that the CPU took over from another device, where the engine can tell."""
    if device.lower() == "cpu":
        return ()
    from onnxruntime.capi import onnxruntime_pybind11_state as engine

    try:
        graphs = session.get_provider_graph_assignment_info()
        nodes = [
            f"{node.op_type} {node.name}"
            for graph in graphs
            if graph.ep_name == "CPUExecutionProvider"
            for node in graph.get_nodes()
        ]
    except (AttributeError, RuntimeError, engine.Fail) as exc:  # 1.24 and later have it
        return (f"unknown: this ONNX Runtime does not tell which nodes ran on the CPU ({exc})",)
    return tuple(f"{node} on the CPU" for node in nodes)
