"""Lowers a component to OpenVINO IR: ``openvino_model.xml`` and ``openvino_model.bin``.

Inputs, outputs and arithmetic are float32 in the file whatever the precision; the precision is that
of the stored weights, which is OpenVINO's own convention. What a device computes in is decided when
the file is compiled, by INFERENCE_PRECISION_HINT. A timestep stays float32: an integer input would
make OpenVINO cut fractions off in silence.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree import ElementTree

from perfuse.backend import (
    PRECISIONS,
    SCHEMES,
    Component,
    Constant,
    Exporter,
    Quantized,
    StoredTensor,
    WeightMap,
)
from perfuse.errors import ExportError, UnwritableError
from perfuse.progress import say
from perfuse.sources import write_map
from perfuse_exporters.openvino.engine import import_openvino
from perfuse_exporters.openvino.gates import split_gates
from perfuse_exporters.openvino.heads import spread_heads
from perfuse_exporters.openvino.norms import split_norms
from perfuse_exporters.openvino.phases import find_phases
from perfuse_exporters.openvino.roundings import round_before_converting
from perfuse_exporters.openvino.sizes import say_sizes
from perfuse_exporters.openvino.weights import bind
from perfuse_exporters.openvino.whole_numbers import saturate

if TYPE_CHECKING:
    import openvino as ov
    import torch
    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["OpenVinoExporter"]

MODEL = "openvino_model.xml"
#: A name that OpenVINO gives to what has none.
_COUNTED = re.compile(r"((?:phase/)?[A-Z][A-Za-z0-9]*)_\d+$")


class OpenVinoExporter(Exporter):
    """Writes OpenVINO IR with float32, float16 or bfloat16 weights."""

    format: ClassVar[str] = "openvino"
    storages: ClassVar[tuple[str, ...]] = tuple(SCHEMES)

    def export(self, component: Component, folder: Path) -> Path:
        _check(component)
        scheme = SCHEMES.get(component.storage)
        if scheme is not None and scheme.kept:  # which these files cannot have then
            component = replace(component, storage="")
        if component.storage:
            raise ExportError(
                f"{component.name} was to be exported with its weights as {component.storage}; its "
                "graph is not known apart from its weights, which these files need for that. Leave "
                "the precision of this component as it is, or run it on torch."
            )
        openvino = import_openvino()
        # What OpenVINO reads from there stays mapped until the model is written.
        with TemporaryDirectory(dir=folder) as scratch:
            model = _convert(openvino, component, Path(scratch))
            _mend(model, component)
            exact = find_phases(model, component.precision)
            _declare(model, component)
            _write(openvino, model, folder / MODEL, component, exact)
            del model, exact
        return folder / MODEL

    def export_graph(self, component: Component, folder: Path) -> tuple[Path, WeightMap]:
        """Write IR in which each weight is an input, named after the tensor: see ``bind``."""
        _check(component)
        openvino = import_openvino()
        from perfuse.capture import build

        module = build(component)
        tensors = StoredTensor.all_of(module)
        model, names = _convert_apart(openvino, component, module)
        constants = {
            name: Constant(tensor=name, dtype=component.precision, shape=tensors[name].shape)
            for name in _name_weights(model, names)
        }
        _mend(model, component)
        exact = find_phases(model, component.precision)
        _declare(model, component, weights=len(constants))
        _write(openvino, model, folder / MODEL, component, exact)
        return folder / MODEL, WeightMap.around(constants, tensors, names)

    def fill(
        self,
        graph: Path,
        weights: WeightMap,
        tensors: Mapping[str, StoredTensor | Quantized],
        folder: Path,
    ) -> Path:
        openvino = import_openvino()
        model = openvino.Core().read_model(graph)
        held = bind(openvino, model, weights, tensors, exact=True)
        _save(openvino, model, folder / MODEL)
        write_map(weights, folder)
        del model, held
        return folder / MODEL

    def unsupported(self, program: "ExportedProgram", component: Component) -> Mapping[str, str]:
        """What OpenVINO's frontend has no rule for, or fails to translate, and ONNX neither."""
        from perfuse_exporters.onnx.exporter import OnnxExporter
        from perfuse_exporters.operators import refused

        openvino = import_openvino()

        def convert(program: "ExportedProgram") -> None:
            try:
                openvino.convert_model(program)
            except Exception as exc:
                raise ExportError(_said(exc)) from exc

        found = refused(program, convert)
        return found if found and OnnxExporter().unsupported(program, component) else {}


def _mend(model: "ov.Model", component: Component) -> None:
    """Rewrite what OpenVINO's CPU plugin would end the process with, or answer wrongly."""
    split_norms(model)
    spread_heads(model)
    saturate(model)
    if component.precision == "float32":  # halves have no numbers to split with, and none to round
        round_before_converting(model)
    else:
        split_gates(model)


def _check(component: Component) -> None:
    if component.precision not in PRECISIONS:
        raise ExportError(
            f"{component.name} was to be exported to OpenVINO in {component.precision}; "
            f"choose one of {', '.join(PRECISIONS)}."
        )


def _write(
    openvino: Any, model: "ov.Model", path: Path, component: Component, exact: "list[ov.Node]"
) -> None:
    say(f"Writing {component.name}")
    model.set_friendly_name(component.name)
    _save(openvino, model, path)
    tree = ElementTree.parse(path)
    _mark(tree, {op.get_friendly_name() for op in exact}, "precise")
    _number_anew(tree)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _save(openvino: Any, model: "ov.Model", path: Path) -> None:
    try:
        # Its own compression would round the table of sinusoid frequencies, too, and a phase of 999
        # times that would be a quarter of a radian wrong. The weights have their precision already.
        openvino.save_model(model, path, compress_to_fp16=False)
        if widened := _widened(model):
            tree = ElementTree.parse(path)
            _mark(tree, widened, "decompression")
            tree.write(path, encoding="utf-8", xml_declaration=True)
    except RuntimeError as exc:
        raise UnwritableError(
            f"{path} was to be written; OpenVINO said: {_said(exc)}. Free space or choose another "
            "folder."
        ) from exc


def _convert_apart(
    openvino: Any, component: Component, module: "nn.Module"
) -> "tuple[ov.Model, tuple[str, ...]]":
    """The graph with each weight of the module as an input, before the signature's; their names.

    What is not a constant cannot be folded into another, nor found to be of no effect.
    """
    import torch
    from torch import Tensor, nn
    from torch.func import functional_call

    from perfuse.capture import hollow, trace

    emptied, bound = hollow(module, getattr(torch, component.precision))
    names = tuple(sorted(bound))
    given = emptied.state_dict()
    kept = {n: t.float() for n, t in emptied.named_buffers() if t.is_floating_point()}

    class Apart(nn.Module):
        """Takes its weights, then its inputs; computes in float32."""

        def forward(self, *tensors: Tensor) -> Any:
            weights = {name: t.float() for name, t in zip(names, tensors, strict=False)}
            inputs = tensors[len(names) :]
            return functional_call(emptied, {**kept, **weights}, inputs, tie_weights=False)

    before = tuple(given[name] for name in names)
    program = trace(component, Apart(), torch.float32, before=before)
    say_sizes(program)
    say(f"Converting {component.name} to OpenVINO")
    shapes = [openvino.PartialShape(list(tensor.shape)) for tensor in before]
    shapes += [_partial_shape(openvino, component, t.shape) for t in component.signature.inputs]
    try:
        model: ov.Model = openvino.convert_model(program, input=shapes)
    except Exception as exc:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be lowered to OpenVINO "
            f"{openvino.__version__}; it said: {_said(exc)}. Run this component on another backend."
        ) from exc
    return model, names


def _name_weights(model: "ov.Model", names: tuple[str, ...]) -> list[str]:
    """Name the inputs that are weights, and take out those that nothing reads."""
    used = []
    for port, name in zip(model.get_parameters(), names, strict=False):
        if port.output(0).get_target_inputs():
            port.set_friendly_name(name)
            port.output(0).get_tensor().set_names({name})
            used.append(name)
        else:
            model.remove_parameter(port)
    return used


def _convert(openvino: Any, component: Component, scratch: Path) -> "ov.Model":
    """Capture the component and translate the graph; its constants share the module's memory.

    What OpenVINO's frontend for PyTorch refuses is lowered to ONNX, for which it has another.
    """
    import torch

    from perfuse.capture import build, cast, trace

    module = build(component)
    if component.precision == "float32":
        module = cast(module, torch.float32)
    else:
        module = _stored_in(getattr(torch, component.precision), module)
    program = trace(component, module, torch.float32)
    say_sizes(program)
    say(f"Converting {component.name} to OpenVINO")
    shapes = [_partial_shape(openvino, component, t.shape) for t in component.signature.inputs]
    try:
        model: ov.Model = openvino.convert_model(program, input=shapes)
        frontend = "pytorch"
    except Exception as exc:  # noqa: BLE001 - the other frontend may take what this one refuses
        model = _through_onnx(openvino, program, module, component, scratch, refusal=exc)
        frontend = "onnx"
    model.set_rt_info(frontend, ["perfuse", "frontend"])
    return model


def _through_onnx(
    openvino: Any,
    program: "ExportedProgram",
    module: "nn.Module",
    component: Component,
    scratch: Path,
    *,
    refusal: Exception,
) -> "ov.Model":
    """The model as OpenVINO's ONNX frontend reads it; weights go from file to file, one at a time."""
    from perfuse_exporters.onnx.exporter import lower

    say(f"Converting {component.name} to OpenVINO through ONNX")
    try:
        file = lower(program, module, component, scratch, for_reading=True)
        model: ov.Model = openvino.Core().read_model(file)
    except Exception as exc:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be lowered to OpenVINO "
            f"{openvino.__version__}; it said: {_said(refusal)}; and through ONNX: {_said(exc)}. Run "
            "this component on another backend."
        ) from exc
    return model


def _stored_in(dtype: "torch.dtype", module: "nn.Module") -> "nn.Module":
    """The module with its weights in another dtype and its arithmetic in float32."""
    from torch import Tensor, nn
    from torch.func import functional_call

    from perfuse.capture import replace_tensors

    class Upcast(nn.Module):
        """Casts each weight where it is used: OpenVINO keeps its stored dtype, and the cast."""

        def __init__(self) -> None:
            super().__init__()
            self.stored = replace_tensors(
                module, lambda t: t.to(dtype) if t.is_floating_point() else t
            )

        def forward(self, *inputs: Tensor) -> Any:
            tensors = (*self.stored.named_parameters(), *self.stored.named_buffers())
            full = {name: t.float() for name, t in tensors if t.is_floating_point()}
            return functional_call(self.stored, full, inputs)

    return Upcast()


def _partial_shape(
    openvino: Any, component: Component, shape: tuple[int | str, ...]
) -> "ov.PartialShape":
    def dimension(dim: int | str) -> Any:
        if isinstance(dim, int):
            return openvino.Dimension(dim)
        known = component.spec.dim(dim)
        return openvino.Dimension(
            known.multiple, known.maximum if known.maximum is not None else -1
        )

    return openvino.PartialShape([dimension(dim) for dim in shape])


def _declare(model: "ov.Model", component: Component, *, weights: int = 0) -> None:
    """Give inputs and outputs the signature's names, in its order; weights come before the inputs."""
    signature = component.signature
    inputs = model.inputs[weights:]
    for kind, found, wanted in (
        ("inputs", inputs, signature.input_names),
        ("outputs", model.outputs, signature.output_names),
    ):
        if len(found) != len(wanted):
            raise ExportError(
                f"{component.name} has the {kind} {', '.join(wanted)}; OpenVINO's graph has "
                f"{len(found)} {kind}. Correct the signature, or what the module returns."
            )
    for port, name in zip(inputs, signature.input_names, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    for port, name in zip(model.outputs, signature.output_names, strict=True):
        # An output that is an input keeps that name, too.
        kept = set(port.get_tensor().get_names()).intersection(signature.input_names)
        port.get_tensor().set_names({name, *kept})
    model.set_rt_info(component.name, ["perfuse", "component"])
    model.set_rt_info(component.precision, ["perfuse", "weights"])


def _widened(model: "ov.Model") -> set[str]:
    """The layers that widen weights in bfloat16.

    Without a mark, OpenVINO would keep a copy of each in float32 beside the one in a kernel's layout.
    """
    sources = {
        op.get_friendly_name(): op.input_value(0).get_node()
        for op in model.get_ops()
        if op.get_type_name() == "Convert"
    }
    return {
        name
        for name, source in sources.items()
        if source.get_type_name() == "Constant"
        and source.get_output_element_type(0).get_type_name() == "bf16"
    }


def _mark(tree: "ElementTree.ElementTree[Any]", names: set[str], mark: str) -> None:
    """Put one of OpenVINO's marks on layers.

    Those that are ``precise`` may be computed in half precision on no device; a ``decompression`` widens weights
    that stay as they are in memory.
    """
    for layer in tree.iter("layer"):
        if layer.get("name") in names:
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                layer.insert(0 if layer.find("data") is None else 1, info)
            if info.find(f"attribute[@name='{mark}']") is None:
                # OpenVINO's names for them, in files, since 2022.
                ElementTree.SubElement(info, "attribute", {"name": mark, "version": "0"})


def _number_anew(tree: "ElementTree.ElementTree[Any]") -> None:
    """Number the layers that OpenVINO named by what it counted in this process."""
    for i, layer in enumerate(tree.iter("layer")):
        layer.set("name", _COUNTED.sub(rf"\g<1>_{i}", layer.get("name", "")))


def _said(exc: Exception) -> str:
    """The line of an OpenVINO message that names the operations, or else its first."""
    lines = [line.strip().removeprefix("-- ") for line in str(exc).splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"No conversion rule|Conversion is failed", line)]
    return "; ".join(named) or (lines[0] if lines else repr(exc))
