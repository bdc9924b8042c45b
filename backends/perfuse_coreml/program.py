"""A component's ML Programs behind its signature, whatever engine runs them.

Core ML itself and the interpreter both run what is saved as ``.mlpackage``; names, dtypes and
layouts of the files are met here. Imports neither torch nor coremltools.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from perfuse.arrays import to_numpy
from perfuse.backend import Array, Component, ExecutionReport, Program
from perfuse.errors import ArtifactError, ExecutionError, InputError
from perfuse_exporters.coreml.apple import input_name, is_apple, output_name, with_apples_layout

__all__ = ["CoreMLProgram", "Predictor"]


class Predictor(Protocol):
    """One saved ML Program: named numpy arrays in, named numpy arrays out, as the file has them."""

    #: Name to shape, of the default size, and numpy dtype: ``{"timestep": ((2,), "float32")}``.
    inputs: Mapping[str, tuple[tuple[int, ...], str]]
    outputs: Mapping[str, tuple[tuple[int, ...], str]]

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run once."""
        ...


class CoreMLProgram(Program):
    """A component's packages, run in order; outputs of one are inputs of the next, by name.

    An input becomes what the file declares for it: float16 where it says so, which rounds a
    timestep between 512 and 1024 to a half.
    """

    def __init__(
        self, component: Component, parts: Sequence[Predictor], report: ExecutionReport
    ) -> None:
        """Check that the files are the component's.

        Raises:
            ArtifactError: they take or give something else.
        """
        self._component = component
        self._parts: Sequence[Predictor] | None = tuple(parts)
        self._apple = is_apple(component)
        self.signature = component.signature
        self._inputs = {self._input_name(name): name for name in self.signature.input_names}
        self._check_inputs(parts)
        given = {name for part in parts for name in part.outputs}
        self._outputs = {name: self._output_name(name) for name in self.signature.output_names}
        if not given >= set(self._outputs.values()):
            raise ArtifactError(
                f"{component.name} gives {', '.join(self._outputs.values())}; its file gives "
                f"{', '.join(sorted(given))}. It was made for another component. Export the model "
                "again."
            )
        self._report = dataclasses.replace(report, fallbacks=(*report.fallbacks, *self._rounded()))

    def _rounded(self) -> Sequence[str]:
        """What the files take in float16 though the component is float32, as Apple's denoisers do."""
        if self._component.precision != "float32":
            return ()
        types = {name: t for part in self._parts or () for name, (_, t) in part.inputs.items()}
        names = [name for name in self._inputs if types.get(name) == "float16"]
        return [f"{', '.join(names)} are rounded to float16, as the file takes them"] * bool(names)

    def _input_name(self, name: str) -> str:
        return input_name(self._component.name, name) if self._apple else name

    def _output_name(self, name: str) -> str:
        return output_name(self._component.name, name) if self._apple else name

    def _check_inputs(self, parts: Sequence[Predictor]) -> None:
        known = set(self._inputs)
        wanted = {name for part in parts for name in part.inputs}
        unused = known - wanted
        for part in parts:
            if unknown := sorted(set(part.inputs) - known):
                raise ArtifactError(
                    f"{self._component.name} takes {', '.join(self._inputs)}; its file asks for "
                    f"{', '.join(unknown)}, too. It was made for another component. Export the "
                    "model again."
                )
            known |= set(part.outputs)
        if unused:
            raise ArtifactError(
                f"{self._component.name} takes {', '.join(self._inputs)}; its file has no "
                f"{', '.join(sorted(unused))}. It was made for another component. Export the model "
                "again."
            )

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once; numpy arrays out, float32.

        Raises:
            InputError: the arrays do not fit the signature, or a size that it was exported for.
            ExecutionError: the engine failed, or the program was closed.
        """
        parts, component = self._parts, self._component
        if parts is None:
            raise ExecutionError(f"{component.name} was closed; prepare it again.")
        dims = component.spec.signature.bind(inputs, component=component.name)
        component.check_dims(dims)
        values = {there: to_numpy(inputs[name]) for there, name in self._inputs.items()}
        for part in parts:
            fed = {name: self._fit(name, values[name], *part.inputs[name]) for name in part.inputs}
            values |= part(fed)
        return {
            name: np.asarray(values[there], np.float32) for name, there in self._outputs.items()
        }

    def _fit(
        self, there: str, array: npt.NDArray[Any], shape: tuple[int, ...], dtype: str
    ) -> npt.NDArray[Any]:
        """An array as the file declares it."""
        name = self._inputs.get(there)
        if self._apple and name is not None:
            array = with_apples_layout(name, array, shape)
        if (
            dtype == "int32"
            and array.dtype.kind == "f"
            and not np.equal(array, np.rint(array)).all()
        ):
            raise InputError(
                f"{self._component.name} was given {there} {array.ravel()[0]}; its file takes "
                f"{dtype} there, which would cut the fraction off. Export the model again with "
                "perfuse, or choose a schedule of whole timesteps."
            )
        return np.ascontiguousarray(array, dtype=dtype)

    def report(self) -> ExecutionReport:
        """What the engine reported when the files were loaded, and where they round."""
        return self._report

    def close(self) -> None:
        """Release the engine's models."""
        self._parts = None
