"""Lowers a component to StableHLO: ``model.stablehlo`` and ``model.safetensors``.

The program is what ``jax.export`` serialises: StableHLO in its portable form, with the names,
shapes and dtypes of what it takes and gives. The weights are arguments of it, so that they can be
replaced without compiling again. Inputs and outputs are float32 whatever the precision; whole
numbers are int32, because they are indices in our graphs and XLA's devices are made for 32 bits.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.backend import (
    PRECISIONS,
    Component,
    Constant,
    Exporter,
    Options,
    Quantized,
    StoredTensor,
    WeightMap,
)
from perfuse.errors import ExportError, InputError
from perfuse.plugins import said
from perfuse.sources import write_map
from perfuse_exporters.stablehlo.engine import import_jax, settings
from perfuse_exporters.stablehlo.files import (
    FORMAT,
    MODEL,
    WEIGHTS,
    load,
    sealed,
    taken,
    write_weights,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

__all__ = ["CAST_TYPES", "StableHloExporter"]

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_OPTIONS = {
    "auto_cast": ("none", "matmult", "all"),
    "auto_cast_type": ("bf16", "fp16", "tf32", "fp8_e4m3"),
    "operators": ("core", "neuron"),
}
#: What ``auto_cast_type`` may be, and the precision that it is.
CAST_TYPES = {"bf16": "bfloat16", "fp16": "float16"}
_NO_TYPE = {
    "tf32": "XLA has no TF32, and how Neuron rounds to it is not known here",
    "fp8_e4m3": "how Neuron scales and saturates values for FP8 is not known here",
}


class StableHloExporter(Exporter):
    """Writes StableHLO in float32, float16 or bfloat16, for one size.

    Options: ``auto_cast`` (``none``, ``matmult``, ``all``) and ``auto_cast_type`` (``bf16``,
    ``fp16``), with what neuronx-cc does under the same names written into the program; and
    ``operators=neuron``, for the graph in the operators that Neuron's compiler documents.
    """

    format: ClassVar[str] = FORMAT
    fixed: ClassVar[bool] = True
    options: ClassVar[Options] = _OPTIONS

    def export(self, component: Component, folder: Path) -> Path:
        """Write the component into an empty folder and return the path of ``model.stablehlo``.

        Raises:
            ExportError: a dimension has no size, or the component could not be captured or lowered.
            InputError: an option is a cast that cannot be computed here.
        """
        options = _checked(component)
        import torch

        from perfuse.capture import capture

        graph = capture(component, getattr(torch, component.precision))
        program, weights = _program(component, graph, options)
        path = folder / MODEL
        path.write_bytes(program)
        write_weights(folder / WEIGHTS, weights, _details(component, options))
        return path

    def export_graph(self, component: Component, folder: Path) -> tuple[Path, WeightMap]:
        """Write the program, and beside it what of its weights is computed from the config."""
        options = _checked(component)
        import torch

        from perfuse.capture import build, hollow, trace

        module, dtype = build(component), getattr(torch, component.precision)
        emptied, bound = hollow(module, dtype)
        program, weights = _program(component, trace(component, emptied, dtype), options)
        path = folder / MODEL
        path.write_bytes(program)
        kept = {name: tensor for name, tensor in weights.items() if name not in bound}
        write_weights(folder / WEIGHTS, kept, _details(component, options))
        constants = {
            name: Constant(tensor=name, dtype=component.precision, shape=tensor.shape)
            for name, tensor in weights.items()
            if name in bound
        }
        return path, WeightMap.around(constants, StoredTensor.all_of(module), bound)

    def fill(
        self,
        graph: Path,
        weights: WeightMap,
        tensors: Mapping[str, StoredTensor | Quantized],
        folder: Path,
    ) -> Path:
        loaded = load(graph, given=taken(weights, tensors))
        shutil.copyfile(graph, folder / MODEL)
        write_weights(folder / WEIGHTS, dict(loaded.tensors()), loaded.details)
        write_map(weights, folder)
        return folder / MODEL

    def unsupported(self, program: "ExportedProgram", component: Component) -> Mapping[str, str]:
        """The operators without a lowering, each with the reason and the line of the model."""
        import_jax()
        from perfuse_exporters.stablehlo.graph import decomposed, line_of, refusals

        return {
            name: f"{reason} ({line_of(node) or 'an unknown line'})"
            for name, (reason, node) in refusals(decomposed(program)).items()
        }


def _checked(component: Component) -> dict[str, str]:
    """The options to lower a component with.

    Raises:
        ExportError: its precision, or a dimension without a size, cannot be lowered.
        InputError: an option is a cast that cannot be computed here.
    """
    options = _read_options(component.options)
    if component.precision not in PRECISIONS:
        raise ExportError(
            f"{component.name} was to be exported to StableHLO in {component.precision}; "
            f"choose one of {', '.join(PRECISIONS)}."
        )
    if component.precision != "float32" and options["auto_cast"] != "none":
        raise InputError(
            f"auto_cast={options['auto_cast']} was asked for with {component.precision}; it "
            "casts float32. Use --precision float32, or leave auto_cast out."
        )
    _check_sizes(component)
    return options


def _details(component: Component, options: Mapping[str, str]) -> dict[str, str]:
    """What is noted beside the weights."""
    return {"component": component.name, "precision": component.precision, **options}


def _read_options(given: Mapping[str, str]) -> dict[str, str]:
    defaults = {"auto_cast": "none", "auto_cast_type": "bf16", "operators": "core"}
    options = {**defaults, **given}
    kind = options["auto_cast_type"]
    if kind in _NO_TYPE:
        raise InputError(
            f"auto_cast_type={kind} was asked for; {_NO_TYPE[kind]}. Use bf16 or fp16, or compile "
            "on a Neuron instance: perfuse export --to neuron."
        )
    return options


def _check_sizes(component: Component) -> None:
    dims = [dim for dim in component.spec.signature.dims if dim not in component.static]
    if dims:
        several = "several sizes of" if component.sizes else "any"
        raise ExportError(
            f"{component.name} was to be exported to StableHLO for {several} {', '.join(dims)}; a "
            "program has one size. Fix them: --height H --width W --batch B."
        )


def _whole_in_32_bits(name: str, tensor: "Tensor") -> "Tensor":
    """A weight as it is stored: int64 as int32, which it must fit."""
    import torch

    if tensor.dtype != torch.int64:
        return tensor
    small = tensor.to(torch.int32)
    if not torch.equal(small.to(torch.int64), tensor):
        raise ExportError(
            f"The buffer {name} holds whole numbers beyond 32 bits; the program's are int32. "
            "Run this component on another backend."
        )
    return small


def _program(
    component: Component, graph: "ExportedProgram", options: Mapping[str, str]
) -> tuple[bytes, dict[str, StoredTensor]]:
    """The program of a captured graph, as its file has it, and all the weights that it takes."""
    import_jax()
    from perfuse_exporters.stablehlo.graph import Casting, decomposed, lowered, weights_of

    if options["operators"] == "neuron":
        from perfuse_exporters.neuron.graph import core_graph

        program = core_graph(graph)
    else:
        program = decomposed(graph)
    weights = {
        name: StoredTensor.of(_whole_in_32_bits(name, tensor))
        for name, tensor in weights_of(program).items()
    }
    function = lowered(
        program,
        component,
        Casting(mode=options["auto_cast"], dtype=CAST_TYPES[options["auto_cast_type"]]),
    )
    return sealed(_serialised(function, component, weights)), weights


def _serialised(
    function: Any, component: Component, weights: Mapping[str, StoredTensor]
) -> bytearray:
    """The function, traced for the component's sizes. No array is computed with or held."""
    jax = import_jax()

    taken = {
        name: jax.ShapeDtypeStruct(tensor.array.shape, tensor.dtype)
        for name, tensor in weights.items()
    }
    inputs = {
        tensor.name: jax.ShapeDtypeStruct(
            tensor.resolve(component.static), "int32" if tensor.dtype == "int64" else "float32"
        )
        for tensor in component.spec.signature.inputs
    }
    function.__name__ = component.name
    try:
        # The program would otherwise name the exporting machine's files, operation by operation, and
        # be another one where the process has 64 bits switched on.
        with settings(jax_traceback_in_locations_limit=0, jax_enable_x64=False):
            exported = jax.export.export(jax.jit(function), platforms=_PLATFORMS)(taken, inputs)
            serialised: bytearray = exported.serialize()
            return serialised
    except Exception as exc:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be lowered to StableHLO; JAX "
            f"{jax.__version__} said: {said(exc)}. Run this component on another backend."
        ) from exc
