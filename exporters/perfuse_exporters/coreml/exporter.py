"""Lowers a component to a Core ML program: ``model.mlpackage``. It needs coremltools, and no Mac.

Inputs and outputs have the signature's names and ranks; floating-point ones are float32 whatever
the precision inside, integers are int32. A package takes one size, or a list of sizes.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.backend import Component, Exporter, Options, Quantized, StoredTensor, WeightMap
from perfuse.errors import ExportError, InputError, PerfuseError
from perfuse.sources import write_map
from perfuse.spec import TensorSpec
from perfuse_exporters.coreml.apple import adapted, arrange, is_apple
from perfuse_exporters.coreml.tools import exact, import_coremltools, quiet

if TYPE_CHECKING:
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
#: Options that make something of the values of weights, or more than one package.
_OF_VALUES = ("palettize", "quantize", "chunks", "dialect")


class CoreMLExporter(Exporter):
    """Writes Core ML programs in float32 or float16."""

    format: ClassVar[str] = "coreml"
    fixed: ClassVar[bool] = True
    options: ClassVar[Options] = OPTIONS

    def export(self, component: Component, folder: Path) -> Path:
        """Write ``model.mlpackage``, or ``model_chunk1.mlpackage`` and ``model_chunk2.mlpackage``.

        Options: ``deployment_target``, the oldest system that is to run it (iOS16 by default);
        ``compute_units``, for the record; ``palettize``, bits of a weight's index into a table;
        ``quantize``, ``int8`` weights; ``chunks``, two packages in place of one; ``dialect``.

        Raises:
            ExportError: the component could not be captured or lowered.
            InputError: an option does not go with another or with the sizes.
        """
        options = _checked(component)
        import torch

        from perfuse.capture import build, cast
        from perfuse_exporters.coreml.compress import palettize, quantize
        from perfuse_exporters.coreml.edit import bisect
        from perfuse_exporters.coreml.graph import lower

        module = cast(build(component), torch.float32)
        if is_apple(component):
            component, module = adapted(component, module)
        package = folder / MODEL
        program = lower(_opened(component), module)
        with _coremltools(component) as ct:
            _convert(ct, component, program, package, options)
            del module, program  # the weights are in the file
            if "palettize" in options:
                palettize(package, int(options["palettize"]))
            if "quantize" in options:
                quantize(package)
            parts = bisect(package) if options.get("chunks") == "2" else [package]
        for part in parts:
            _sign(part, component, options)
        return parts[0]

    def export_graph(self, component: Component, folder: Path) -> tuple[Path, WeightMap]:
        """Write ``model.mlpackage`` with the weights cut out of its file of weights."""
        options = _checked(component)
        if others := [name for name in options if name in _OF_VALUES]:
            raise ExportError(
                f"{component.name} was to be exported to Core ML without its weights; what "
                f"{', '.join(others)} makes of them follows from their values."
            )
        from perfuse.capture import build
        from perfuse_exporters.coreml.graph import lower
        from perfuse_exporters.coreml.weights import located, randomised, without

        module = build(component)
        drawn, names = randomised(module)
        package = folder / MODEL
        program = lower(_opened(component), drawn)
        with _coremltools(component) as ct:
            _convert(ct, component, program, package, options)
        _sign(package, component, options)
        constants = located(package, program, drawn, names)
        weights = WeightMap.around(constants, StoredTensor.all_of(module), names)
        without(package, weights)
        return package, weights

    def fill(
        self,
        graph: Path,
        weights: WeightMap,
        tensors: Mapping[str, StoredTensor | Quantized],
        folder: Path,
    ) -> Path:
        from perfuse_exporters.coreml.weights import fill

        fill(graph, weights, tensors, folder / MODEL)
        write_map(weights, folder)
        return folder / MODEL

    def unsupported(self, program: "ExportedProgram", component: Component) -> Mapping[str, str]:
        """Operators of a captured graph that coremltools has no conversion for."""
        from perfuse_exporters.coreml.graph import simplified

        import_coremltools()
        from coremltools.converters.mil.frontend.torch.torch_op_registry import (
            _TORCH_OPS_REGISTRY as registry,
        )

        missing = {}
        for node in simplified(program).graph.nodes:
            if node.op == "call_function" and registry.get_func(_kind(node.target)) is None:
                missing[str(node.target)] = "coremltools has no conversion for it"
        return missing

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
        return arrange(folder, components, files, model=model)


def _kind(target: Any) -> str:
    """What coremltools looks an operator up by."""
    return str(target.name() if hasattr(target, "name") else target.__name__)


def _checked(component: Component) -> dict[str, str]:
    """The options to export a component with.

    Raises:
        ExportError: it has a precision that there is not, or a size that is not fixed.
        InputError: an option does not go with another or with the sizes.
    """
    if component.precision not in _PRECISIONS:
        raise ExportError(
            f"{component.name} was to be exported to Core ML in {component.precision}, which "
            f"it does not have; choose one of {', '.join(_PRECISIONS)}."
        )
    defaults = {"deployment_target": _DEFAULT_TARGET, "compute_units": "ALL"}
    options = {**defaults, **component.options}
    _check_options(component, options)
    _check_fixed(component)
    return options


def _sign(package: Path, component: Component, options: Mapping[str, str]) -> None:
    from perfuse_exporters.coreml.edit import sign

    sign(package, {"component": component.name, "precision": component.precision, **options})


def _check_options(component: Component, options: Mapping[str, str]) -> None:
    system = options["deployment_target"]
    for option in ("palettize", "quantize"):
        if option in options and system in ("iOS15", "macOS12"):
            raise InputError(
                f"{component.name} was to be exported with {option}={options[option]} for {system}, "
                "which has no compressed weights. Give deployment_target=iOS16, or a later one."
            )
    if "palettize" in options and "quantize" in options:
        raise InputError(
            f"{component.name} was to be exported with palettize={options['palettize']} and "
            f"quantize={options['quantize']}; a weight is stored in one way. Give one of them."
        )
    if options.get("chunks") == "2" and component.sizes:
        raise InputError(
            f"{component.name} was to be exported in two chunks for several sizes; a chunk takes "
            "one size. Give one size, or chunks=1."
        )


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


def _opened(component: Component) -> Component:
    """The component with every dimension open that shares an input with one that varies.

    With one of height and width fixed, torch.export fixes more of a graph than it says. What all
    sizes are multiples of is told to it, so that what was halved can be seen to be doubled again.
    """
    spec, sizes = component.spec, component.sizes
    varying = set(sizes[0]) if sizes else set()
    shapes = [tensor.shape for tensor in spec.signature.inputs]
    beside = {
        dim
        for shape in shapes
        if varying & set(shape)
        for dim in shape
        if isinstance(dim, str) and dim != "batch"
    }
    halvings = 2 ** max(len(spec.config.get("block_out_channels", ())) - 1, 0)
    dims = dict(spec.dims)
    for dim in beside:
        values = [{**component.static, **size}[dim] for size in sizes]
        multiple = math.lcm(spec.dim(dim).multiple, math.gcd(halvings, *values))
        dims[dim] = dataclasses.replace(spec.dim(dim), multiple=multiple)
    return dataclasses.replace(
        component,
        spec=dataclasses.replace(spec, dims=dims),
        static={dim: size for dim, size in component.static.items() if dim not in beside},
    )


@contextmanager
def _coremltools(component: Component) -> Iterator[Any]:
    """Import coremltools for a ``with`` block, with logging off and its errors as ours."""
    ct = import_coremltools()
    try:
        with quiet() as heard, exact():
            yield ct
    except (PerfuseError, OSError):
        raise
    except Exception as exc:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be lowered to Core ML by "
            f"coremltools {ct.__version__}; it said: {_said(exc, heard.messages)}. Run this "
            "component on another backend."
        ) from exc


def _convert(
    ct: Any,
    component: Component,
    program: "ExportedProgram",
    package: Path,
    options: Mapping[str, str],
) -> None:
    signature = component.signature
    precision = ct.precision.FLOAT32
    if component.precision == "float16":
        precision = ct.transform.FP16ComputePrecision(op_selector=_in_half(component))
    inputs = [_input_type(ct, component, tensor) for tensor in signature.inputs]
    _check_flexible(ct, component, inputs, options)
    ct.convert(
        program,
        convert_to="mlprogram",
        inputs=inputs,
        outputs=[ct.TensorType(name=t.name, dtype=_numpy_type(t)) for t in signature.outputs],
        minimum_deployment_target=getattr(ct.target, options["deployment_target"]),
        compute_precision=precision,
        skip_model_load=True,
        package_dir=str(package),
    )


def _numpy_type(tensor: TensorSpec) -> Any:
    import numpy as np

    return {"int64": np.int32, "float16": np.float16}.get(tensor.dtype, np.float32)


def _input_type(ct: Any, component: Component, tensor: TensorSpec) -> Any:
    shapes = [tensor.resolve({**component.static, **size}) for size in component.sizes or [{}]]
    different = list(dict.fromkeys(shapes))
    shape = different[0] if len(different) == 1 else ct.EnumeratedShapes(shapes=different)
    return ct.TensorType(name=tensor.name, shape=shape, dtype=_numpy_type(tensor))


def _check_flexible(
    ct: Any, component: Component, inputs: list[Any], options: Mapping[str, str]
) -> None:
    flexible = [one.name for one in inputs if isinstance(one.shape, ct.EnumeratedShapes)]
    if len(flexible) > 1 and options["deployment_target"] not in ("iOS18", "macOS15"):
        raise InputError(
            f"{component.name} was to be exported for several sizes; {' and '.join(flexible)} "
            f"change with them, and {options['deployment_target']} takes one such input. Give "
            "deployment_target=iOS18, or one size."
        )


def _in_half(component: Component) -> Callable[[Any], bool]:
    """Which operations of a float16 program are in float16.

    Not those that lead to a sine or a cosine: a timestep of 999.3 is 999.5 in half precision, and
    what it is multiplied with is its phase. Nor attention where the model says that its scores
    overflow (Stable Diffusion 2.1's ``upcast_attention``).
    """
    upcast = bool(component.spec.config.get("upcast_attention"))
    kept: set[Any] | None = None

    def select(op: Any) -> bool:
        nonlocal kept
        if kept is None:  # the first is asked for before any is changed
            kept = _leading_to(op.enclosing_block, ("sin", "cos"))
            if upcast:
                kept |= _attention(op.enclosing_block)
        return op not in kept

    return select


def _attention(block: Any) -> set[Any]:
    """Softmax, the matrix products around it, and the operations that scale their inputs."""
    products = ("matmul", "einsum", "scaled_dot_product_attention")
    found = {op for op in block.operations if op.op_type in (*products, "softmax")}
    scaled = (value.op for op in found for value in _inputs(op))
    return found | {op for op in scaled if op is not None and op.op_type in ("mul", "real_div")}


def _inputs(op: Any) -> list[Any]:
    lists = (v if isinstance(v, list | tuple) else [v] for v in op.inputs.values())
    return [value for values in lists for value in values]


def _leading_to(block: Any, kinds: tuple[str, ...]) -> set[Any]:
    """The operations of these kinds, and all that their inputs are made of."""
    found: set[Any] = set()
    todo = [op for op in block.operations if op.op_type in kinds]
    while todo:
        op = todo.pop()
        if op not in found:
            found.add(op)
            todo += [value.op for value in _inputs(op) if value.op is not None]
    return found


def _said(exc: Exception, heard: list[str]) -> str:
    """The first line of coremltools' error, with the operator that it logged."""
    line = next((line.strip() for line in str(exc).splitlines() if line.strip()), repr(exc))
    stopped = [match[1] for text in heard if (match := re.search(r"converting '(.+?)' op", text))]
    return f"{stopped[-1]}: {line}" if stopped and stopped[-1] not in line else line
