"""A compiled model behind a component's signature."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perfuse.arrays import is_torch, to_numpy
from perfuse.backend import Array, Component, ExecutionReport, Program
from perfuse.errors import ArtifactError, ExecutionError, InputError
from perfuse_exporters.openvino.engine import said

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["OpenVinoProgram"]

_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class OpenVinoProgram(Program):
    """One inference request. Inputs are read where they lie; outputs are the caller's to keep."""

    def __init__(
        self,
        component: Component,
        compiled: "ov.CompiledModel",
        *,
        path: Path,
        device: str,
        held: Sequence[Any] = (),
    ) -> None:
        """Of a compiled model.

        Args:
            component: What it computes.
            compiled: The model.
            path: The file that it is made of, for errors.
            device: Where it runs.
            held: What it reads, so that it stays.
        """
        import openvino

        self._held = held

        self._compiled: ov.CompiledModel | None = compiled
        self._device = device
        self._tensor = openvino.Tensor
        spec = component.spec.signature
        self._inputs = [
            (tensor.name, index, *_expected(compiled.inputs[index]))
            for tensor, index in zip(
                spec.inputs, _positions(compiled.inputs, spec.input_names, path), strict=True
            )
        ]
        if len(self._inputs) != len(compiled.inputs):
            names = [", ".join(port.names) for port in compiled.inputs]
            raise ArtifactError(
                f"{path} has the inputs {'; '.join(names)}; {component.name} has "
                f"{', '.join(spec.input_names)}. The file was made for another component."
            )
        self._outputs = [
            (tensor.name, index, np.dtype("int64" if tensor.dtype == "int64" else "float32"))
            for tensor, index in zip(
                spec.outputs, _positions(compiled.outputs, spec.output_names, path), strict=True
            )
        ]
        # What another tool fixed in the file is in no manifest.
        static = {**_fixed(component, compiled, self._inputs), **component.static}
        self._component = component = dataclasses.replace(component, static=static)
        self.signature = component.signature
        self._request: ov.InferRequest | None = compiled.create_infer_request()

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once; numpy arrays in and out, float32 or int64.

        Raises:
            InputError: the arrays do not fit the signature, the component's sizes, or the size
                that the file was made for.
            ExecutionError: OpenVINO failed, or the program was closed.
        """
        request, component = self._request, self._component
        if request is None:
            raise ExecutionError(f"{component.name} was closed; prepare it again.")
        dims = component.spec.signature.bind(inputs, component=component.name)
        component.check_dims(dims)
        held = []  # OpenVINO reads this memory and does not keep it
        for name, index, dtype, rank in self._inputs:
            array = inputs[name]
            if not (type(array) is np.ndarray and array.dtype == dtype and array.ndim == rank):
                array = self._fit(name, array, dtype, rank)
            if not (array.flags.c_contiguous and array.flags.writeable):
                array = np.array(array, order="C")  # it takes no memory that it may not write
            held.append(array)
            request.set_input_tensor(index, self._tensor(array, shared_memory=True))
        try:
            request.infer()
        except RuntimeError as exc:
            shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in inputs.items())
            raise ExecutionError(
                f"{component.name} on openvino:{self._device} failed with {shapes}; OpenVINO said: "
                f"{said(exc)}."
            ) from exc
        # A copy costs little beside what made it, and then nothing the caller holds can change:
        # not when it is called again, and not when a result is its next input.
        return {
            name: request.get_output_tensor(index).data.astype(dtype)
            for name, index, dtype in self._outputs
        }

    def _fit(self, name: str, array: Array, dtype: "np.dtype[Any]", rank: int) -> npt.NDArray[Any]:
        """An array as this file wants it: OpenVINO itself would cast, and cut off, in silence."""
        found = to_numpy(array) if is_torch(array) else np.asarray(array)
        if dtype.kind in "iu" and found.dtype.kind not in "iub":
            whole = np.rint(found)
            if not np.array_equal(whole, found):
                raise InputError(
                    f"{self._component.name} was given {name} {found.ravel()[0]}; its file takes "
                    f"{dtype.name} there, which would cut the fraction off. Export the model "
                    "again with perfuse, or choose a schedule of whole timesteps."
                )
        if rank == 0 and found.ndim > 0:
            if found.size == 0 or (found != found.flat[0]).any():
                raise InputError(
                    f"{self._component.name} was given {name} {found.tolist()}; its file takes one "
                    "for the whole batch. Export the model again with perfuse."
                )
            found = found.reshape(-1)[0]
        return np.asarray(found, dtype=dtype)

    def report(self) -> ExecutionReport:
        """What really runs, read back from the compiled model's properties."""
        import openvino

        if self._compiled is None:
            raise ExecutionError(f"{self._component.name} was closed; prepare it again.")
        devices = [str(one) for one in self._compiled.get_property("EXECUTION_DEVICES")]
        properties = _engine_properties(self._compiled)
        hint = properties.get("INFERENCE_PRECISION_HINT")
        precision = (
            _NAMES.get(hint.to_string(), hint.to_string()) if hint is not None else "unknown"
        )
        asked = self._component.precision
        return ExecutionReport(
            device=",".join(devices),
            precision=precision,
            engine=f"openvino {openvino.get_version()}",
            fallbacks=(
                (f"{asked} weights are computed with in {precision}",) if precision != asked else ()
            ),
            details={
                "weights": asked,
                "threads": properties.get("INFERENCE_NUM_THREADS"),
                "streams": properties.get("NUM_STREAMS"),
                "from_cache": bool(self._compiled.get_property("LOADED_FROM_CACHE")),
            },
        )

    def close(self) -> None:
        """Release the request and the compiled model."""
        self._request = self._compiled = None
        self._held = ()


def _positions(ports: Any, names: tuple[str, ...], path: Path) -> list[int]:
    """Where each name of a signature is among a file's ports: by name, or else by position."""
    known = {name: index for index, port in enumerate(ports) for name in port.names}
    # The states before the last layer, as Optimum names them: one output a layer.
    hidden = sorted(
        (name for name in known if name.startswith("hidden_states.")),
        key=lambda name: int(name.rpartition(".")[2]),
    )
    if len(hidden) > 1:
        known.setdefault("penultimate_hidden_state", known[hidden[-2]])
    if all(name in known for name in names):
        return [known[name] for name in names]
    if len(ports) == len(names):
        return list(range(len(names)))
    raise ArtifactError(
        f"{path} has {', '.join(known) or 'nothing'}; {', '.join(names)} were looked for. It was "
        "made for another component, or by a tool whose names perfuse does not know. Export the "
        "model again."
    )


def _expected(port: Any) -> tuple["np.dtype[Any]", int]:
    return np.dtype(port.element_type.to_dtype()), port.partial_shape.rank.get_length()


def _fixed(component: Component, compiled: "ov.CompiledModel", inputs: list[Any]) -> dict[str, int]:
    """The sizes that a file fixes where the signature does not, as another tool's may."""
    fixed: dict[str, int] = {}
    for tensor, (_, index, _, rank) in zip(component.spec.signature.inputs, inputs, strict=True):
        if rank != len(tensor.shape):
            continue
        for dim, found in zip(tensor.shape, compiled.inputs[index].partial_shape, strict=True):
            if isinstance(dim, str) and found.is_static:
                fixed[dim] = found.get_length()
    return fixed


def _engine_properties(compiled: "ov.CompiledModel") -> Mapping[str, Any]:
    """What the device runs with; behind AUTO, the device that it chose."""
    known = compiled.get_property("SUPPORTED_PROPERTIES")
    if "INFERENCE_PRECISION_HINT" not in known and "DEVICE_PROPERTIES" in known:
        behind: Mapping[str, Mapping[str, Any]] = compiled.get_property("DEVICE_PROPERTIES")
        return next(iter(behind.values()), {})
    wanted = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS")
    return {name: compiled.get_property(name) for name in wanted if name in known}
