"""Lowers a component to a Core ML program: ``model.mlpackage``, made on any operating system.

Inputs and outputs have the signature's names and ranks; floating-point ones are float32 whatever
the precision inside, integers are int32. A package takes one size, or a list of sizes.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.backend import Component, Exporter, read_options
from perfuse.errors import ExportError
from perfuse.spec import TensorSpec
from perfuse_exporters.apple import adapted, arrange, is_apple

if TYPE_CHECKING:
    import coremltools as ct
    from torch.export import ExportedProgram

__all__ = ["CoreMLExporter", "import_coremltools"]

MODEL = "model.mlpackage"
_PRECISIONS = ("float32", "float16")
#: Each with the name that Core ML has for the same file on a Mac.
_TARGETS = {"iOS15": "macOS12", "iOS16": "macOS13", "iOS17": "macOS14", "iOS18": "macOS15"}
_DEFAULT_TARGET = "iOS16"
OPTIONS = {
    "deployment_target": (*_TARGETS, *_TARGETS.values()),
    "compute_units": ("ALL", "CPU_AND_GPU", "CPU_AND_NE", "CPU_ONLY"),
    "palettize": ("1", "2", "4", "6", "8"),
    "quantize": ("int8",),
    "chunks": ("1", "2"),
    "dialect": ("native", "apple"),
}


def import_coremltools() -> Any:
    """The ``coremltools`` module, imported without what it says of parts that it does not find."""
    with _quiet():
        import coremltools

    return coremltools


class _Heard(logging.Handler):
    """Keeps what coremltools logs: the operator that it stopped at is named nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _quiet() -> Iterator[_Heard]:
    """Keep coremltools' progress bars, warnings and log from the terminal."""
    logger, heard = logging.getLogger("coremltools"), _Heard()
    propagate = logger.propagate
    logger.addHandler(heard)
    logger.propagate = False
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield heard
    finally:
        logger.propagate = propagate
        logger.removeHandler(heard)


class CoreMLExporter(Exporter):
    """Writes Core ML programs in float32 or float16."""

    format: ClassVar[str] = "coreml"
    fixed: ClassVar[bool] = True

    def export(self, component: Component, folder: Path) -> Path:
        """Write ``model.mlpackage``.

        Options: ``deployment_target``, the oldest system that is to run it (iOS16 by default);
        ``compute_units``, for the record; ``palettize``, bits of a weight's index into a table;
        ``quantize``, ``int8`` weights; ``chunks``, two packages in place of one; ``dialect``.

        Raises:
            ExportError: the component could not be captured or lowered.
            InputError: an option is unknown, or needs a later deployment target.
        """
        if component.precision not in _PRECISIONS:
            raise ExportError(
                f"{component.name} was to be exported to Core ML in {component.precision}, which "
                f"it does not have; choose one of {', '.join(_PRECISIONS)}."
            )
        options = read_options(component.options, OPTIONS, of="The Core ML exporter")
        _check_fixed(component)
        import torch

        from perfuse_exporters.capture import build, cast
        from perfuse_exporters.coreml_graph import lower

        module = cast(build(component), torch.float32)
        if is_apple(component):
            component, module = adapted(component, module)
        program = lower(component, module)
        package = folder / MODEL
        _convert(component, program, package, options)
        _tidy(package, component, options)
        return package

    def arrange(
        self,
        folder: Path,
        components: Mapping[str, Component],
        files: Mapping[str, Path],
        *,
        model: str,
    ) -> Mapping[str, Path]:
        if not any(map(is_apple, components.values())):
            return files
        return arrange(folder, files, model=model)


def _check_fixed(component: Component) -> None:
    """Every dimension has a size, or is in a list of sizes."""
    listed = set(component.sizes[0]) if component.sizes else set()
    missing = [
        name for name in component.spec.signature.dims if name not in {*component.static, *listed}
    ]
    if missing:
        raise ExportError(
            f"{component.name} was to be exported to Core ML with any {', '.join(missing)}; a Core "
            "ML program takes one size or a list of sizes. Give a size: --height H --width W, or "
            "--size HxW several times."
        )


def _convert(
    component: Component, program: "ExportedProgram", package: Path, options: dict[str, str]
) -> "ct.models.MLModel":
    ct = import_coremltools()
    signature = component.signature
    precision = ct.precision.FLOAT32
    if component.precision == "float16":
        precision = ct.transform.FP16ComputePrecision(op_selector=_in_half(component))
    with _quiet() as heard:
        try:
            return ct.convert(
                program,
                convert_to="mlprogram",
                inputs=[_input_type(ct, component, tensor) for tensor in signature.inputs],
                outputs=[
                    ct.TensorType(name=t.name, dtype=_numpy_type(t)) for t in signature.outputs
                ],
                minimum_deployment_target=_target(ct, options),
                compute_precision=precision,
                pass_pipeline=_passes(ct),
                skip_model_load=True,
                package_dir=str(package),
            )
        except Exception as exc:
            at = [message for message in heard.messages if "ERROR" in message]
            raise ExportError(
                f"{component.name} ({component.spec.class_name}) was to be lowered to Core ML by "
                f"coremltools {ct.__version__}; it said: {_said(exc, at)}. Run this component on "
                "another backend."
            ) from exc


def _target(ct: Any, options: dict[str, str]) -> Any:
    return getattr(ct.target, options.get("deployment_target", _DEFAULT_TARGET))


def _passes(ct: Any) -> Any:
    """coremltools' passes, without one that changes the numbers.

    It writes a scale and a shift as a batch norm of variance one, and leaves that its epsilon: each
    group norm comes out 5 millionths too small.
    """
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({"common::fuse_elementwise_to_batchnorm"})
    return passes


def _numpy_type(tensor: TensorSpec) -> Any:
    import numpy as np

    return {"int64": np.int32, "float16": np.float16}.get(tensor.dtype, np.float32)


def _input_type(ct: Any, component: Component, tensor: TensorSpec) -> Any:
    shapes = [tensor.resolve({**component.static, **size}) for size in component.sizes or [{}]]
    different = list(dict.fromkeys(shapes))
    shape = different[0] if len(different) == 1 else ct.EnumeratedShapes(shapes=different)
    return ct.TensorType(name=tensor.name, shape=shape, dtype=_numpy_type(tensor))


def _in_half(component: Component) -> Any:
    """Which operations of a float16 program are in float16.

    Not those that lead to a sine or a cosine: a timestep of 999.3 is 999.5 in half precision, and
    what it is multiplied with is its phase.
    """

    exact: set[Any] | None = None

    def select(op: Any) -> bool:
        nonlocal exact
        if exact is None:  # the first is asked for before any is changed
            exact = _leading_to(op.enclosing_block, ("sin", "cos"))
        return op not in exact

    return select


def _leading_to(block: Any, kinds: tuple[str, ...]) -> set[Any]:
    """The operations of these kinds, and all that their inputs are made of."""
    found: set[Any] = set()
    todo = [op for op in block.operations if op.op_type in kinds]
    while todo:
        op = todo.pop()
        if op not in found:
            found.add(op)
            todo += [
                value.op
                for values in op.inputs.values()
                for value in (values if isinstance(values, list | tuple) else [values])
                if value.op is not None
            ]
    return found


def _tidy(package: Path, component: Component, options: dict[str, str]) -> None:
    pass


def _said(exc: Exception, at: list[str]) -> str:
    return f"{type(exc).__name__}: {exc}"
