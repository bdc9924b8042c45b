"""A program on the device: weights that stay there, and one size that it can be run for."""

import weakref
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from perfuse import Component, ExecutionReport, Program
from perfuse.arrays import to_numpy
from perfuse.errors import ArtifactError, ExecutionError, InputError
from perfuse.spec import Array

from perfuse_openreg.driver import Accelerator, Buffer, Region
from perfuse_openreg.graph import DType, Graph, Operation, Reference, read, weights
from perfuse_openreg.hardware import readable
from perfuse_openreg.kernels import KERNELS

__all__ = ["OpenRegProgram"]


class OpenRegProgram(Program):
    """Copies the inputs in, launches one operator after another, waits, copies the outputs out."""

    def __init__(self, component: Component, device: Accelerator, path: Path) -> None:
        """Load a program's file into device memory.

        Raises:
            ArtifactError: the file is damaged, or was made for another component or size.
            ExecutionError: it does not fit into the memory that is free.
        """
        graph = read(path)
        _check(graph, component, path)
        self.signature = component.signature
        self._component = component
        self._device = device
        self._graph = graph
        self._freed = graph.last_uses()
        self._activation_bytes = graph.activation_bytes()
        self._weights: dict[str, Buffer] = {}
        regions: list[Region] = []
        # What close does; it happens too where nobody calls close.
        self._release = weakref.finalize(self, _release, device, regions)
        with device.lock:
            _check_memory(graph, device)
            # Both are reserved now: a program that was prepared does not run out of memory later.
            regions += [device.reserve(graph.weight_bytes), device.reserve(self._activation_bytes)]
            held, self._workspace = regions
            for value, tensor in weights(path, graph):
                self._weights[value.name] = device.copy_in(tensor, value.dtype, held)

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once; the arrays returned are the caller's own.

        Raises:
            InputError: the arrays do not fit the signature, or the size that the program is for.
            ExecutionError: an operator failed, or the program was closed.
        """
        component, device = self._component, self._device
        if not self._release.alive:
            raise ExecutionError(f"{component.name} was closed; prepare it again.")
        dims = component.spec.signature.bind(inputs, component=component.name)
        component.check_dims(dims)
        arrays = [self._host(name, inputs[name]) for name in self.signature.input_names]
        with device.lock:
            try:
                return self._run(arrays)
            finally:
                device.abandon()
                device.clear(self._workspace)

    def _run(self, arrays: list[npt.NDArray[Any]]) -> dict[str, Array]:
        device, workspace = self._device, self._workspace
        buffers = dict(self._weights)
        for value, array in zip(self._graph.inputs, arrays, strict=True):
            buffers[value.name] = device.copy_in(array, value.dtype, workspace)
        for operation, freed in zip(self._graph.operations, self._freed, strict=True):
            made = _launch(device, operation, buffers, workspace)
            buffers |= made
            for name in freed:
                device.free(buffers.pop(name))
        device.synchronize()
        return {
            name: device.copy_out(buffers[value])
            for name, value in zip(self.signature.output_names, self._graph.outputs, strict=True)
        }

    def _host(self, name: str, array: Array) -> npt.NDArray[Any]:
        found = to_numpy(array)
        value = self._graph.inputs[self.signature.input_names.index(name)]
        if value.dtype == "int64" and found.dtype.kind not in "iu":
            raise InputError(
                f"{self._component.name} takes {name} in whole numbers; got {found.dtype}."
            )
        return found

    def report(self) -> ExecutionReport:
        """What was executed: the types that results were rounded to, counted in the program."""
        counts: dict[str, int] = {}
        for operation in self._graph.operations:
            dtype = next((v.dtype for v in operation.results if v is not None), "none")
            counts[dtype] = counts.get(dtype, 0) + 1
        return ExecutionReport(
            device=f"openreg:{self._device.name}",
            precision=self._graph.precision,
            # The truth: nobody is to take these numbers for those of a device.
            engine=f"torch {torch.__version__}, simulating openreg {version('perfuse-openreg')}",
            details={
                "operators": counts,
                "weight_bytes": self._graph.weight_bytes,
                "activation_bytes": self._activation_bytes,
                "memory_bytes": self._device.memory.size,
                "free_bytes": self._device.memory.free,
            },
        )

    def close(self) -> None:
        """Free the device memory; again does nothing."""
        self._release()


def _launch(
    device: Accelerator, operation: Operation, buffers: Mapping[str, Buffer], workspace: Region
) -> dict[str, Buffer]:
    """Queue one operation; its results by name."""

    def given(argument: Any) -> Any:
        if isinstance(argument, Reference):
            return buffers[argument.name]
        if isinstance(argument, DType):
            return getattr(torch, argument.name)
        return [given(one) for one in argument] if isinstance(argument, list) else argument

    made = device.launch(
        operation.operator,
        [given(argument) for argument in operation.arguments],
        {name: given(option) for name, option in operation.options.items()},
        [(v.dtype, v.shape) if v is not None else None for v in operation.results],
        workspace,
    )
    return {
        value.name: buffer
        for value, buffer in zip(operation.results, made, strict=True)
        if value is not None and buffer is not None
    }


def _release(device: Accelerator, regions: list[Region]) -> None:
    with device.lock:
        for region in regions:
            device.release(region)


def _check(graph: Graph, component: Component, path: Path) -> None:
    """See that a file holds what it is said to hold, before it takes memory."""
    unknown = sorted({one.operator for one in graph.operations} - KERNELS.keys())
    if unknown:
        raise ArtifactError(
            f"{path} uses the operators {', '.join(unknown)}; this version of openreg has none of "
            "that name. Update perfuse-openreg, or export the model again with this version."
        )
    wanted = [tensor.shape for tensor in component.signature.inputs]
    found = [value.shape for value in graph.inputs]
    outputs = len(component.signature.outputs)
    if found != wanted or len(graph.outputs) != outputs or graph.precision != component.precision:
        raise ArtifactError(
            f"{path} holds {graph.component} in {graph.precision} for the inputs {found}; "
            f"{component.name} in {component.precision} has {wanted}. Export the model again."
        )


def _check_memory(graph: Graph, device: Accelerator) -> None:
    held, used = graph.weight_bytes, graph.activation_bytes()
    memory = device.memory
    if held + used > memory.free:
        raise ExecutionError(
            f"{graph.component} was to be put on openreg:{device.name}: {readable(held)} of weights "
            f"and {readable(used)} of activations; {readable(memory.free)} of "
            f"{readable(memory.size)} are free. Close other programs, ask for a smaller picture or "
            "batch, --precision bfloat16, another device, or more with --option memory=1024MB."
        )
