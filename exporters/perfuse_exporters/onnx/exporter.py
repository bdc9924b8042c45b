"""Lowers components to ONNX: a graph of standard operators and attention, its weights beside it.

The weights are never part of what is converted: the graph is made with stand-ins of the right
shape, and each tensor then goes from the checkpoint's mapped file to the artifact's, one at a time.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from perfuse.backend import (
    SCHEMES,
    Component,
    Constant,
    Exporter,
    Quantized,
    StoredTensor,
    WeightMap,
    quantized,
)
from perfuse.errors import ExportError
from perfuse.plugins import said
from perfuse.progress import say
from perfuse_exporters.onnx.attention import DOMAIN, define
from perfuse_exporters.onnx.matching import matching_first_nodes
from perfuse_exporters.onnx.operators import translations
from perfuse_exporters.onnx.weights import MODEL, changed, dtype_of, fill, number_of

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import torch
    from torch.export import ExportedProgram

#: Names of a module's tensors to their shapes.
Shapes = Mapping[str, tuple[int, ...]]

__all__ = ["OnnxExporter", "lower"]

#: Gelu came with 20; ONNX Runtime 1.20 reads up to 21.
OPSET = 20
#: The file format's version; ONNX Runtime 1.20 reads up to 10.
IR_VERSION = 10


#: Numbers of a constant that is compared with others, to be there once.
_ALIKE = 2**20

#: What no graph may hold: control flow, sequences and random numbers.
_FORBIDDEN = frozenset(
    ("If", "Loop", "Scan", "SequenceAt", "SplitToSequence", "ConcatFromSequence", "SequenceEmpty")
    + ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli")
)


class OnnxExporter(Exporter):
    """Writes ``model.onnx`` and, above a megabyte, ``model.onnx_data``.

    Inputs and outputs have the signature's names in its order; symbolic dimensions have its names.
    In float16 the weights, the arithmetic and the borders are float16, but for the timestep and
    its sinusoids and the statistics of the normalisations, which are float32 as in PyTorch.
    """

    format: ClassVar[str] = "onnx"
    storages: ClassVar[tuple[str, ...]] = tuple(SCHEMES)

    def export(self, component: Component, folder: Path) -> Path:
        """Write the component into an empty folder and return the path of ``model.onnx``.

        Raises:
            ExportError: the precision is not one that engines run, or the component could not be
                captured or lowered.
            InputError: an option was given; there are none.
        """
        dtype = _dtype(component)
        from perfuse.capture import build, replace_tensors, trace

        module = build(component)
        # Memory that is never touched is never allocated, so a stand-in of any size is free.
        hollow = replace_tensors(module, lambda tensor: _stand_in(tensor, dtype))
        return lower(trace(component, hollow, dtype), module, component, folder)

    def export_graph(self, component: Component, folder: Path) -> tuple[Path, WeightMap]:
        """Write ``model.onnx`` without initializers for the weights: whoever loads it adds them."""
        dtype = _dtype(component)
        from perfuse.capture import build, hollow, trace

        module = build(component)
        tensors = StoredTensor.all_of(module)
        emptied, bound = hollow(module, dtype)
        shapes = {name: tensors[name].shape for name in bound}
        model, constants = _lowered(trace(component, emptied, dtype), shapes, component)
        path = folder / MODEL
        say(f"Writing the graph of {component.name}")
        path.write_bytes(model.SerializeToString())
        return path, WeightMap.around(constants, tensors, bound)

    def fill(
        self,
        graph: Path,
        weights: WeightMap,
        tensors: Mapping[str, StoredTensor | Quantized],
        folder: Path,
    ) -> Path:
        import onnx

        return fill(onnx.load(graph), weights, tensors.__getitem__, folder)

    def unsupported(self, program: "ExportedProgram", component: Component) -> Mapping[str, str]:
        """Operators that the converter refuses, or that perfuse's graphs must not hold."""
        from onnxscript import optimizer  # noqa: F401 - without it, everything would be refused

        from perfuse_exporters.operators import refused

        def convert(program: "ExportedProgram") -> None:
            try:
                model, weights = _lower(program, {})
            except Exception as exc:
                cause: BaseException = exc
                while cause.__cause__ is not None:  # the converter's own says the same of all
                    cause = cause.__cause__
                raise ExportError(said(cause)) from exc
            _simplify(model, weights)
            _check(model, component)

        return refused(program, convert)


def lower(
    program: "ExportedProgram",
    module: "torch.nn.Module",
    component: Component,
    folder: Path,
    *,
    for_reading: bool = False,
) -> Path:
    """Lower a captured graph and write it, with the weights of a module; returns ``model.onnx``.

    Args:
        program: The graph.
        module: Where its weights are, under the same names.
        component: What it is captured from.
        folder: Where to write.
        for_reading: Whether another converter is to read the file: weights then keep the dtype that
            they are stored in, with a cast to that which is computed in.

    Raises:
        ExportError: it could not be lowered.
    """
    tensors = StoredTensor.all_of(module)
    shapes = {name: one.shape for name, one in tensors.items() if one.floating}
    model, constants = _lowered(program, shapes, component, fold_casts=not for_reading)
    say(f"Writing {component.name}")
    weights = WeightMap(constants=constants)
    given = quantized(tensors, component.storage, component.calibration)
    return fill(model, weights, given.__getitem__, folder)


def _dtype(component: Component) -> "torch.dtype":
    """What to compute in.

    Raises:
        ExportError: ONNX Runtime could not.
    """
    import torch

    if component.precision not in ("float32", "float16"):
        raise ExportError(
            f"{component.name} was to be exported to onnx in {component.precision}; ONNX "
            "Runtime has no bfloat16 convolutions on the CPU, so nothing here could run or "
            "check the file. Use --precision float16 or float32."
        )
    return torch.float16 if component.precision == "float16" else torch.float32


def _stand_in(tensor: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    # Integers are positions and tables, whose values may determine the graph's structure.
    return torch.empty(tensor.shape, dtype=dtype) if tensor.is_floating_point() else tensor


def _lowered(
    program: "ExportedProgram",
    tensors: Shapes,
    component: Component,
    *,
    fold_casts: bool = True,
) -> "tuple[onnx.ModelProto, dict[str, Constant]]":
    """The graph without those tensors, and which of its constants they are.

    Raises:
        ExportError: it could not be lowered.
    """
    import onnx_ir as ir

    say(f"Lowering {component.name} to ONNX")
    try:
        model, weights = _lower(program, tensors)
        _simplify(model, weights, fold_casts=fold_casts)
        _check(model, component)
        _name(model, component)
        define(model)
        for value in weights:
            del model.graph.initializers[str(value.name)]
        return ir.to_proto(model), {str(value.name): one for value, one in weights.items()}
    except ExportError:
        raise
    except Exception as exc:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be lowered to ONNX; "
            f"the converter said: {type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
        ) from exc


def _lower(
    program: "ExportedProgram", tensors: Shapes
) -> "tuple[ir.Model, dict[ir.Value, Constant]]":
    """The unsimplified graph, and which of its values are these tensors."""
    import torch

    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            custom_translation_table=translations(),
        )
    if exported is None:
        raise ExportError("torch.onnx.export returned no program. Report it, with the model.")
    model: ir.Model = exported.model
    weights = {}
    for name, value in model.graph.initializers.items():
        dtype = dtype_of(value.dtype.value) if value.dtype is not None else None
        if name in tensors and dtype is not None:
            weights[value] = Constant(tensor=name, dtype=dtype, shape=tensors[name])
    return model, weights


@contextmanager
def _quiet() -> "Iterator[None]":
    """The converter talks about packages that are not needed; standard output is the user's."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _simplify(
    model: "ir.Model", weights: "dict[ir.Value, Constant]", *, fold_casts: bool = True
) -> None:
    """Fold constants and remove nodes without effect, without reading weights.

    Meanwhile the weights are inputs of the graph: what is not known cannot be folded or merged.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
    from onnxscript import optimizer

    graph = model.graph
    for value in weights:
        graph.initializers.pop(str(value.name))
        value.const_value = None
    tiny = _tiny(graph)
    graph.inputs.extend([*weights, *tiny])
    with _quiet(), matching_first_nodes():
        optimizer.optimize_ir(model, onnx_shape_inference=False)
        # The ones that each norm without a weight is multiplied by, which may be wider than it looks at.
        DeduplicateInitializersPass(size_limit=_ALIKE)(model)
        ClearMetadataAndDocStringPass()(model)
    for value in [*weights, *tiny]:
        graph.inputs.remove(value)
    for value, tensor in tiny.items():
        value.const_value = tensor
        graph.initializers[str(value.name)] = value
    _fold_into_weights(graph, weights, casts=fold_casts)
    for value in list(weights):
        if value.uses():
            graph.initializers[str(value.name)] = value
        else:
            del weights[value]
    # Initializers that only the folded nodes used; an output may be one itself.
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _tiny(graph: "ir.Graph") -> "dict[ir.Value, ir.TensorProtocol]":
    """Take numbers so close to zero that the optimizer takes them for it out of a graph.

    It leaves ``x + 1e-15`` out, and what is divided by that is then divided by zero.
    """
    import onnx_ir as ir

    found: dict[ir.Value, ir.TensorProtocol] = {}
    for node in list(graph):
        value = node.outputs[0]
        tensor = ir.convenience.get_const_tensor(value) if node.op_type == "Constant" else None
        if tensor is not None and _is_tiny(tensor):
            made = ir.Value(name=f"{value.name}_tiny", type=value.type, shape=value.shape)
            value.replace_all_uses_with(made)
            found[made] = tensor
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and _is_tiny(value.const_value):
            found[value] = graph.initializers.pop(name).const_value
            value.const_value = None
    return found


def _is_tiny(tensor: "ir.TensorProtocol") -> bool:
    if tensor.size != 1 or not tensor.dtype.is_floating_point():
        return False
    return 0 < abs(float(tensor.numpy().item())) < 1e-6


def _fold_into_weights(
    graph: "ir.Graph", weights: "dict[ir.Value, Constant]", *, casts: bool
) -> None:
    """Apply operations whose only input is a weight when the weight is written, not in the graph."""
    import onnx_ir as ir

    names = {value.name for value in weights}
    for node in list(graph):
        first = node.inputs[0] if node.inputs else None
        weight = weights.get(first) if first is not None else None
        output = node.outputs[0]
        if weight is None or (node.op_type == "Cast" and not casts):
            continue
        after = changed(node, weight)
        if first is None or after is None or output.is_graph_output():
            continue
        name = f"{first.name}.{node.op_type.lower()}"
        while name in names:
            name += "_"
        names.add(name)
        dtype = ir.TensorType(ir.DataType(number_of(after.dtype)))
        value = ir.Value(name=name, type=dtype, shape=ir.Shape(after.final_shape))
        output.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        weights[value] = after


def _name(model: "ir.Model", component: Component) -> None:
    """Give inputs, outputs and dimensions the names of the component's signature."""
    import onnx_ir as ir

    graph, signature = model.graph, component.signature
    _separate_outputs(graph)
    faces = [*graph.inputs, *graph.outputs]
    tensors = [*signature.inputs, *signature.outputs]
    if len(graph.inputs) != len(signature.inputs) or len(graph.outputs) != len(signature.outputs):
        raise ExportError(
            f"{component.name} declares {len(signature.inputs)} inputs and "
            f"{len(signature.outputs)} outputs; its graph has {len(graph.inputs)} and "
            f"{len(graph.outputs)}. Make the module use and return what the signature says."
        )
    taken = {tensor.name for tensor in tensors}
    symbolic = any(isinstance(dim, str) for tensor in tensors for dim in tensor.shape)
    for value in _values(graph):
        if value.name in taken:
            value.name = f"{value.name}_inner"
        # Engines infer the rest from the inputs, and from expressions they cannot.
        if symbolic and not value.is_initializer() and value not in faces:
            value.shape = value.type = None
    for value, tensor in zip(faces, tensors, strict=True):
        value.name = tensor.name
        value.shape = ir.Shape(tensor.shape)
    graph.name = component.name
    model.ir_version = IR_VERSION
    model.producer_name = "perfuse"
    model.producer_version = version("perfuse")
    model.metadata_props.update(
        {
            "perfuse.component": component.name,
            "perfuse.class": component.spec.class_name,
            "perfuse.precision": component.precision,
        }
    )


def _values(graph: "ir.Graph") -> "list[ir.Value]":
    return [
        *graph.inputs,
        *graph.initializers.values(),
        *(value for node in graph for value in node.outputs),
    ]


def _separate_outputs(graph: "ir.Graph") -> None:
    """A value that is an input too, or an output twice, cannot have two names."""
    import onnx_ir as ir

    seen: set[ir.Value] = set()
    for i, value in enumerate(graph.outputs):
        if value in seen or value.is_graph_input() or value.is_initializer():
            node = ir.node("Identity", [value])
            graph.append(node)
            copy = node.outputs[0]
            copy.name, copy.type, copy.shape = f"output_{i}", value.type, value.shape
            graph.outputs[i] = copy
        seen.add(value)


def _check(model: "ir.Model", component: Component) -> None:
    """Refuse operators that engines cannot run, or that they run differently.

    Float64 is refused where it crept into a model of ours; what another library computes in it (the
    angles of Flux's rotary embedding, for one) stays in it.
    """
    import onnx_ir as ir

    found = {node.op_type for node in model.graph if node.op_type in _FORBIDDEN}
    found |= {
        f"{node.domain}::{node.op_type}" for node in model.graph if node.domain not in ("", DOMAIN)
    }
    wide = {ir.DataType.DOUBLE, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128}
    if component.foreign:
        wide.remove(ir.DataType.DOUBLE)
    found |= {
        f"{value.dtype} {value.name}" for value in _values(model.graph) if value.dtype in wide
    }
    if found:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was lowered to ONNX; its graph holds "
            f"{', '.join(sorted(found))}, which engines disagree on. Compute it on the host and "
            "pass it in."
        )
