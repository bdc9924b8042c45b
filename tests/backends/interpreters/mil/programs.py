"""Core ML programs for the tests: built by hand, saved by coremltools, and edited in their files."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from perfuse_exporters.coreml.mlpackage import read_model
from perfuse_exporters.coreml.tools import import_coremltools, quiet


def save_program(
    path: Path,
    inputs: Mapping[str, tuple[tuple[int, ...], str]],
    body: Callable[..., Any],
    *,
    target: str = "iOS16",
) -> Path:
    """Save what ``body(mb, **inputs)`` builds, as it builds it: no pass rewrites it.

    Args:
        path: A ``.mlpackage`` that is not there yet.
        inputs: Name to shape and dtype: ``{"x": ((2, 3), "fp16")}``.
        body: Gives an output, or several.
        target: The deployment target.
    """
    ct = import_coremltools()
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program, types

    system = getattr(ct.target, target)
    with quiet():
        named = {
            name: mb.placeholder(shape=shape, dtype=getattr(types, dtype))
            for name, (shape, dtype) in inputs.items()
        }
        program = Program()
        with Function(named, opset_version=system) as function:
            found = body(mb, **function.inputs)
            function.set_outputs(list(found) if isinstance(found, tuple | list) else [found])
        program.add_function("main", function)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=system,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def copied(package: Path, folder: Path) -> Path:
    """A copy of a package that a test may damage."""
    return Path(shutil.copytree(package, folder / package.name))


def weights_of(package: Path) -> Path:
    return package / "Data/com.apple.CoreML/weights/weight.bin"


@contextmanager
def edited(package: Path) -> Iterator[Any]:
    """The model of a package, written back into its file."""
    model, folder = read_model(package)
    yield model
    (folder / "model.mlmodel").write_bytes(model.SerializeToString())


def block_of(model: Any) -> Any:
    """The only block of a model's program."""
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def operation_of(model: Any, type: str, index: int = 0) -> Any:
    """One operation of a type, by its place among them."""
    return [one for one in block_of(model).operations if one.type == type][index]


def constant_of(model: Any, operation: Any, parameter: str) -> Any:
    """The constant that an operation takes as a parameter."""
    name = operation.inputs[parameter].arguments[0].name
    (found,) = [one for one in block_of(model).operations if name in [o.name for o in one.outputs]]
    return found


def normal(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
