"""Reads an ML Program's function as steps that can be run: typed values, constants, bound operations.

The source is MIL.proto of https://github.com/apple/coremltools: a program holds functions, a function
blocks by the name of an operator set, a block operations in the order in which they run.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfuse.errors import ArtifactError, PerfuseError, UnsupportedError
from perfuse.plugins import said
from perfuse_exporters.coreml.mlpackage import within
from perfuse_interpreters.mil.constants import CONSTANTS
from perfuse_interpreters.mil.operations import OPERATIONS
from perfuse_interpreters.mil.weights import BITS, WeightFile

__all__ = ["Function", "Reader", "Step", "TensorType"]

_MODEL_PATH = "@model_path/"
#: The operator sets, iOS 15 to iOS 26, each with what a version of an operation is compared with.
_OPSETS = {f"CoreML{number}": number for number in range(5, 10)}
#: An operation's parameters that are a list, however many there are.
_LISTS = ("values",)


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """What a program declares of a value."""

    #: As MIL calls it: ``"float16"``, ``"int32"``, ``"uint6"``, ``"string"``.
    dtype: str
    #: ``None`` for a size that is known only at run time.
    shape: tuple[int | None, ...]

    def fits(self, value: Any) -> bool:
        """Whether a value is of this type."""
        if not isinstance(value, Tensor):
            return self.dtype == "string"
        return (
            value.dtype == torch_dtype(self.dtype)
            and len(value.shape) == len(self.shape)
            and all(want in (None, n) for want, n in zip(self.shape, value.shape, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation, bound to the function that computes it."""

    #: MIL's name of the operation.
    type: str
    compute: Callable[..., Any]
    #: Parameter to the name of a value, or of several.
    arguments: Mapping[str, str | tuple[str, ...]]
    outputs: tuple[tuple[str, TensorType], ...]
    #: The values that no later step needs.
    done: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in messages: by its outputs."""
        return ", ".join(name for name, _ in self.outputs)

    def __call__(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """What it gives, one value an output."""
        given = {
            parameter: values[names]
            if isinstance(names, str)
            else tuple(values[name] for name in names)
            for parameter, names in self.arguments.items()
        }
        result = self.compute(**given)
        return result if isinstance(result, tuple) else (result,)


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of a program, ready to run."""

    inputs: Mapping[str, TensorType]
    outputs: tuple[str, ...]
    #: What each name that a block gives is.
    types: Mapping[str, TensorType]
    steps: tuple[Step, ...]
    constants: Mapping[str, Any] = field(repr=False)


class Reader:
    """Reads the functions of one program; every error names its file."""

    def __init__(self, program: Any, folder: Path, path: Path) -> None:
        """Nothing is read yet.

        Args:
            program: A ``CoreML.Specification.MILSpec.Program``.
            folder: What ``@model_path`` stands for.
            path: The package, for messages.
        """
        self._program = program
        self._folder = folder
        self._path = path
        self._weights: dict[str, WeightFile] = {}

    def function(self, name: str) -> Function:
        """Read a function: its constants are there then, compressed ones expanded.

        Raises:
            ArtifactError: the program is malformed, or its weights are.
            UnsupportedError: it holds an operation that is not known.
        """
        if name not in self._program.functions:
            raise self._malformed(
                f"it has the functions {', '.join(self._program.functions) or 'none'}, not {name}"
            )
        function = self._program.functions[name]
        if function.opset not in function.block_specializations:
            raise self._malformed(f"{name} has no block for {function.opset or 'its opset'}")
        block = function.block_specializations[function.opset]
        if function.opset not in _OPSETS:
            raise UnsupportedError(
                f"{self._path} is written in {function.opset}; {', '.join(_OPSETS)} are known. "
                "Export it for another deployment target."
            )
        inputs = {one.name: self._type(one.type, one.name) for one in function.inputs}
        types = dict(inputs)
        constants: dict[str, Any] = {}
        steps: list[Step] = []
        for operation in block.operations:
            outputs = dict(self._outputs(operation))
            if twice := [name for name in outputs if name in types]:
                raise self._malformed(f"{twice[0]} is given twice")
            types |= outputs
            if operation.type == "const":
                for output, type_ in outputs.items():
                    constants[output] = self._value(operation.attributes["val"], output)
                    self.check("const", output, type_, constants[output])
                continue
            step = self._step(operation, _OPSETS[function.opset], types, constants)
            if operation.type in CONSTANTS:
                constants |= self.results(step, constants)
            else:
                steps.append(step)
        unknown = [name for name in block.outputs if name not in types]
        if unknown or not block.outputs:
            raise self._malformed(f"it gives {', '.join(unknown) or 'nothing'}, which nothing made")
        return Function(
            inputs=inputs,
            outputs=tuple(block.outputs),
            types=types,
            steps=tuple(_with_ends(steps, tuple(block.outputs))),
            constants=_used(constants, steps, tuple(block.outputs)),
        )

    # Operations

    def _step(
        self,
        operation: Any,
        opset: int,
        types: Mapping[str, TensorType],
        constants: dict[str, Any],
    ) -> Step:
        """Bind an operation; values that stand in the place of an argument become constants."""
        outputs = tuple(self._outputs(operation))
        where = ", ".join(name for name, _ in outputs)
        compute = OPERATIONS.get(operation.type) or CONSTANTS.get(operation.type)
        if compute is None or operation.blocks:
            raise UnsupportedError(
                f"{self._path} has the operation {operation.type}, which gives {where}; the "
                f"interpreter knows {len(OPERATIONS) + len(CONSTANTS)} others. Export it otherwise, "
                "or run it on Core ML."
            )
        given: dict[str, str | tuple[str, ...]] = {}
        for parameter, argument in operation.inputs.items():
            names = []
            for index, binding in enumerate(argument.arguments):
                name = binding.name
                if binding.WhichOneof("binding") == "value":
                    name = f"{where}/{parameter}/{index}"
                    constants[name] = self._value(binding.value, name)
                elif name not in types:
                    raise self._malformed(
                        f"{operation.type} that gives {where} takes {name or 'nothing'} as "
                        f"{parameter}, which nothing has made by then"
                    )
                names.append(name)
            if len(names) != 1 and parameter not in _LISTS:
                raise self._malformed(
                    f"{operation.type} that gives {where} takes {len(names)} values as {parameter}"
                )
            given[parameter] = tuple(names) if parameter in _LISTS else names[0]
        # Before iOS 18, the parts of a compressed constant are stored in its attributes.
        for parameter, value in operation.attributes.items():
            if parameter == "name":
                continue
            given[parameter] = f"{where}/{parameter}"
            constants[f"{where}/{parameter}"] = self._value(value, where)
        known = inspect.signature(compute).parameters
        if "opset" in known:
            given["opset"] = f"{where}/opset"
            constants[f"{where}/opset"] = opset
        if unknown := sorted(set(given) - set(known)):
            raise UnsupportedError(
                f"{self._path} gives {operation.type}, which makes {where}, the parameter "
                f"{', '.join(unknown)}; the interpreter knows {', '.join(known)}."
            )
        missing = [n for n, one in known.items() if one.default is one.empty and n not in given]
        if missing:
            raise self._malformed(f"{operation.type}, which gives {where}, has no {missing[0]}")
        return Step(
            type=operation.type,
            compute=compute,
            # In the order of the parameters: the first float says in what the result is.
            arguments={name: given[name] for name in known if name in given},
            outputs=outputs,
        )

    def _outputs(self, operation: Any) -> Iterator[tuple[str, TensorType]]:
        for output in operation.outputs:
            yield output.name, self._type(output.type, output.name)

    def results(self, step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run one operation, and check its results against the types that the program declares.

        Raises:
            ArtifactError: the operation cannot be computed, or gives something else.
            UnsupportedError: it has a parameter's value that is not known.
        """
        try:
            found = step(values)
        except PerfuseError as exc:
            raise type(exc)(f"{self._path}: {step.type}, which gives {step.name}: {exc}") from exc
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as exc:
            raise self._malformed(
                f"{step.type}, which gives {step.name}, cannot be computed: {said(exc)}"
            ) from exc
        if len(found) != len(step.outputs):
            raise self._malformed(f"{step.type} declares {step.name}; it gives {len(found)} values")
        for (name, declared), value in zip(step.outputs, found, strict=True):
            self.check(step.type, name, declared, value)
        return {name: value for (name, _), value in zip(step.outputs, found, strict=True)}

    def check(self, operation: str, name: str, declared: TensorType, value: Any) -> None:
        """Raise ``ArtifactError`` where a value is not of the type that the program declares."""
        if not declared.fits(value):
            raise self._malformed(
                f"{name} is declared as {declared}; {operation} gives {_described(value)}"
            )

    # Types and values

    def _type(self, type_: Any, name: str) -> TensorType:
        if type_.WhichOneof("type") != "tensorType" or type_.tensorType.rank < 0:
            raise UnsupportedError(
                f"{self._path} has {name}, which is no tensor of a fixed rank; those are "
                "interpreted."
            )
        tensor = type_.tensorType
        dims = [
            dim.constant.size if dim.WhichOneof("dimension") == "constant" else None
            for dim in tensor.dimensions
        ]
        if len(dims) != tensor.rank:
            raise self._malformed(f"{name} has {len(dims)} sizes and a rank of {tensor.rank}")
        number = type(tensor).DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number
        if tensor.dataType not in number:
            raise self._malformed(f"{name} has elements of the unknown type {tensor.dataType}")
        return TensorType(dtype=number[tensor.dataType].name.lower(), shape=tuple(dims))

    def _value(self, value: Any, name: str) -> Any:
        """A constant: a tensor, or a text."""
        type_ = self._type(value.type, name)
        shape = tuple(n or 0 for n in type_.shape)
        if value.WhichOneof("value") == "blobFileValue":
            blob = value.blobFileValue
            array = self._file(blob.fileName).read(blob.offset, type_.dtype, shape)
            return torch.from_numpy(array)
        tensor = value.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        held: Any = getattr(tensor, kind).values if kind is not None else ()
        if type_.dtype == "string":
            if len(held) != 1 or kind != "strings":
                raise self._malformed(f"{name} is a text, and holds {len(held)}")
            return str(held[0])
        try:
            if kind == "bytes":
                array = np.frombuffer(held, type_.dtype)
            else:
                array = np.array(held, type_.dtype)
            # A copy, because the message's memory is read-only.
            return torch.from_numpy(np.array(array.reshape(shape)))
        except (TypeError, ValueError, OverflowError) as exc:
            raise self._malformed(
                f"{name} is declared as {type_}; it holds {len(held)} {kind or 'values'}"
            ) from exc

    def _file(self, name: str) -> WeightFile:
        if not name.startswith(_MODEL_PATH):
            raise self._malformed(f"its weights are said to be in {name!r}, not in the package")
        if name not in self._weights:
            path = within(self._folder, name.removeprefix(_MODEL_PATH), self._path)
            self._weights[name] = WeightFile(path)
        return self._weights[name]

    def _malformed(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self._path} was to be read as a Core ML program; {what}. Export it again."
        )


def torch_dtype(name: str) -> torch.dtype | None:
    """Torch's name of a type; elements of less than a byte are held as a byte each."""
    if name in BITS:
        return torch.int8 if name[0] == "i" else torch.uint8
    found: torch.dtype | None = getattr(torch, name, None)
    return found


def _with_ends(steps: list[Step], outputs: tuple[str, ...]) -> Iterator[Step]:
    """The steps, each with the values that nothing needs after it."""
    needed = set(outputs)
    ended: list[Step] = []
    for step in reversed(steps):
        mentioned = dict.fromkeys((*_names(step), *(name for name, _ in step.outputs)))
        done = tuple(name for name in mentioned if name not in needed)
        needed.update(mentioned)
        ended.append(replace(step, done=done))
    return reversed(ended)


def _names(step: Step) -> Iterator[str]:
    for names in step.arguments.values():
        yield from (names,) if isinstance(names, str) else names


def _used(
    constants: Mapping[str, Any], steps: list[Step], outputs: tuple[str, ...]
) -> dict[str, Any]:
    """The constants that operations use, without the compressed ones they were expanded from."""
    wanted = {name for step in steps for name in _names(step)} | set(outputs)
    return {name: value for name, value in constants.items() if name in wanted}


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return str(TensorType(dtype=str(value.dtype).removeprefix("torch."), shape=tuple(value.shape)))
