"""Runs one saved ML Program in PyTorch on the CPU."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from perfuse.errors import ArtifactError, InputError, UnsupportedError
from perfuse_exporters.coreml.mlpackage import read_model
from perfuse_interpreters.mil.program import Function, Reader, TensorType

__all__ = ["MilPredictor"]

_FLOATS = ("float32", "float16")

Array = npt.NDArray[Any]
#: Name to a shape and numpy's name of a dtype.
Ports = Mapping[str, tuple[tuple[int, ...], str]]


class MilPredictor:
    """A ``Predictor`` of one ``.mlpackage``: its default function, operation by operation.

    Each value has the dtype and the shape that the program declares for it, and is held against
    them. What a program declares as float16 is rounded to float16 after every operation, which is
    computed in float32 (see ``operations``); an overflow is infinity. Weights are mapped from
    their file and widened when they are used; a value is released after its last use.
    """

    def __init__(self, package: Path) -> None:
        """Read the package; nothing is computed but its compressed constants.

        Raises:
            ArtifactError: the package is damaged.
            UnsupportedError: it holds something else than an ML Program of known operations.
        """
        model, folder = read_model(package)
        description = model.description
        name = "main"
        if description.functions:
            name = description.defaultFunctionName or name
            named = {one.name: one for one in description.functions}
            if name not in named:
                raise ArtifactError(
                    f"{package} has the functions {', '.join(named)}; its default is {name}, which "
                    "is not among them. Export it again."
                )
            description = named[name]
        if description.state:
            raise UnsupportedError(
                f"{package} keeps a state between calls; the interpreter runs programs without."
            )
        self._path = package
        self._reader = Reader(model.mlProgram, folder, package)
        self._function = self._reader.function(name)
        self._sizes = {one.name: _Sizes(one, package) for one in description.input}
        types = {name: self._function.types[name] for name in self._function.outputs}
        self._check_described(description.input, self._function.inputs)
        self._check_described(description.output, types)
        self.inputs: Ports = {name: (one.usual, one.dtype) for name, one in self._sizes.items()}
        #: A size that follows from the inputs' is 0.
        self.outputs: Ports = {
            name: (tuple(n or 0 for n in type_.shape), type_.dtype) for name, type_ in types.items()
        }

    def _check_described(self, features: Any, types: Mapping[str, TensorType]) -> None:
        """Check that the model's description matches its function's inputs and outputs."""
        described = {one.name: _dtype(one.type.multiArrayType) for one in features}
        typed = {name: type_.dtype for name, type_ in types.items()}
        if described != typed:
            said = [
                ", ".join(f"{name} ({dtype})" for name, dtype in ports.items()) or "nothing"
                for ports in (described, typed)
            ]
            raise ArtifactError(
                f"{self._path} is described with {said[0]}; its program has {said[1]}. Export it "
                "again."
            )

    @property
    def precision(self) -> str:
        """The float type that most of its operations give."""
        counted = Counter(
            type_.dtype
            for step in self._function.steps
            for _, type_ in step.outputs
            if type_.dtype in _FLOATS
        )
        return max(_FLOATS, key=lambda dtype: counted[dtype])

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            InputError: an input is missing, unknown, or of another dtype or size than declared.
            ArtifactError: an operation cannot be computed, or gives what it does not declare.
        """
        if set(inputs) != set(self.inputs):
            raise InputError(
                f"{self._path} takes {', '.join(self.inputs)}; got {', '.join(inputs) or 'none'}."
            )
        for name, array in inputs.items():
            self._sizes[name].check(array, self._path)
        # Copies, so that the caller may modify the arrays afterwards.
        given = {name: torch.tensor(array) for name, array in inputs.items()}
        with torch.no_grad():
            found = self._run(self._function, given)
        return {name: np.array(value.numpy()) for name, value in found.items()}

    def _run(self, function: Function, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, value in inputs.items():
            self._reader.check("its description", name, function.inputs[name], value)
        values: dict[str, Any] = {**function.constants, **inputs}
        for step in function.steps:
            values |= self._reader.results(step, values)
            for name in step.done:
                del values[name]
        return {name: values[name] for name in function.outputs}


class _Sizes:
    """The dtype of an input, and the sizes that a file was made for."""

    def __init__(self, feature: Any, package: Path) -> None:
        self._name = feature.name
        array = feature.type.multiArrayType
        if feature.type.WhichOneof("Type") != "multiArrayType":
            raise UnsupportedError(
                f"{package} takes {feature.name} as {feature.type.WhichOneof('Type')}; arrays are "
                "interpreted. Export it again, with arrays."
            )
        self.dtype = _dtype(array)
        self.usual = tuple(array.shape)
        self._listed = {self.usual, *(tuple(one.shape) for one in array.enumeratedShapes.shapes)}
        self._ranges = [(one.lowerBound, one.upperBound) for one in array.shapeRange.sizeRanges]

    def check(self, array: Array, package: Path) -> None:
        """Raise ``InputError`` where an array is none that the file takes."""
        if array.dtype.name == self.dtype and self._takes(array.shape):
            return
        sizes = " or ".join(str(shape) for shape in sorted(self._listed))
        if self._ranges:
            sizes = " × ".join(f"{low} to {high}" for low, high in self._ranges)
        raise InputError(
            f"{package} takes {self._name} as {self.dtype} of {sizes}; got {array.dtype.name} of "
            f"{array.shape}. Ask for that size, or export the checkpoint for another."
        )

    def _takes(self, shape: tuple[int, ...]) -> bool:
        if self._ranges:
            return len(shape) == len(self._ranges) and all(
                low <= n <= high for n, (low, high) in zip(shape, self._ranges, strict=True)
            )
        return shape in self._listed


def _dtype(array: Any) -> str:
    """The numpy dtype name of an array in the model's description."""
    numbers = type(array).DESCRIPTOR.enum_types_by_name["ArrayDataType"].values_by_number
    return numbers[array.dataType].name.lower() if array.dataType in numbers else "unknown"
