"""Turns a captured graph into a JAX function of its weights and inputs."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

from perfuse.backend import Component
from perfuse.errors import ExportError
from perfuse_exporters.stablehlo.operators import COMPUTED, MOVED, PRODUCTS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

__all__ = ["Casting", "decomposed", "line_of", "lowered", "refusals", "weights_of"]

#: Composite operators that stay whole: their kernels round once where their parts would each round.
_KEPT = (
    torch.ops.aten.linear.default,
    torch.ops.aten.scaled_dot_product_attention.default,
    torch.ops.aten.silu.default,
)
#: Arguments about devices and memory layout, which a program does not have.
_PLACES = ("device", "layout", "pin_memory", "memory_format", "non_blocking")
#: The operators whose dtype is an argument: the one that the graph gives them.
_MAKERS = (
    "aten._to_copy.default",
    "aten.arange.start_step",
    "aten.full.default",
    "aten.full_like.default",
    "aten.scalar_tensor.default",
)
_HALVES = (jnp.float16, jnp.bfloat16)
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
#: torch's dtypes in the program. Whole numbers are indices in our graphs, and XLA's devices are
#: made for 32 bits: constants are checked when they are lowered, inputs when they are given.
DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int32",
    torch.int32: "int32",
    torch.bool: "bool",
}


@dataclass(frozen=True, kw_only=True)
class Casting:
    """What neuronx-cc's ``--auto-cast`` and ``--auto-cast-type`` do to float32.

    A product's operands are rounded and added up in float32 (``matmult``), or every value is
    rounded wherever one is made (``all``). Source: neuronx-cc's CLI reference,
    https://awsdocs-neuron.readthedocs-hosted.com/en/latest/compiler/neuronx-cc/api-reference-guide/.
    """

    #: ``"none"``, ``"matmult"`` or ``"all"``.
    mode: str = "none"
    #: ``"bfloat16"`` or ``"float16"``.
    dtype: str = "bfloat16"

    def operand(self, x: Any) -> Any:
        """A product's operand as the product takes it."""
        return self._rounded(x) if self.mode != "none" else x

    def value(self, x: Any) -> Any:
        """A weight, an input or a result as the next operation takes it."""
        return self._rounded(x) if self.mode == "all" else x

    def _rounded(self, x: Any) -> Any:
        return x.astype(self.dtype) if x.dtype == "float32" else x


def decomposed(program: "ExportedProgram") -> "ExportedProgram":
    """The graph in core ATen, except for composite operators that are not decomposed."""
    table: Any = torch.export.default_decompositions()
    for op in _KEPT:
        table.pop(op, None)
    parts: ExportedProgram = program.run_decompositions(table)
    return parts


def line_of(node: Node) -> str:
    """Where in a model's source a node comes from: ``perfuse/models/attention.py:44``, or ``""``."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    frames = [frame for frame in frames if "/torch/" not in frame[0].replace("\\", "/")]
    own = [frame for frame in frames if "perfuse" in Path(frame[0]).parts]
    if not frames:
        return ""
    path, line = (own or frames)[-1]
    return f"{'/'.join(Path(path).parts[-3:])}:{line}"


def refusals(program: "ExportedProgram") -> dict[str, tuple[str, Node]]:
    """What of a decomposed graph cannot be lowered: operator to the reason and its first node."""
    found: dict[str, tuple[str, Node]] = {}
    for node in program.graph.nodes:
        reason = _refusal(node)
        if reason is not None:
            found.setdefault(str(node.target), (reason, node))
    return found


def _refusal(node: Node) -> str | None:
    if node.op not in ("call_function", "placeholder"):
        return None
    for value in _tensors(node):
        if value.dtype not in DTYPES:
            return f"its dtype is {str(value.dtype).removeprefix('torch.')}; the program has none"
    name = str(node.target)
    if node.op == "placeholder" or node.target is operator.getitem or not _tensors(node):
        return None  # without a tensor it is an assertion, or arithmetic with sizes
    if name not in PRODUCTS and name not in COMPUTED and name not in MOVED:
        return "there is no lowering for it"
    arguments: dict[Any, Any] = {**dict(enumerate(node.args)), **node.kwargs}
    if name == "aten.convolution.default" and arguments[6]:
        return "transposed convolutions are not lowered"
    if name == "aten.avg_pool2d.default" and arguments.get(4):
        return "windows that reach beyond the picture are not lowered"
    if name == "aten.avg_pool2d.default" and (not arguments.get(5, True) or arguments.get(6)):
        return "means that leave zeros around the picture out are not lowered"
    if "attention" in name and (arguments.get(4) or arguments.get("enable_gqa")):
        return "attention with dropout or shared heads is not lowered"
    return None


def _tensors(node: Node) -> "list[Tensor]":
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return [one for one in values if isinstance(one, torch.Tensor)]


def weights_of(program: "ExportedProgram") -> "dict[str, Tensor]":
    """The parameters, buffers and constants that the graph uses, by their names in the module."""
    specs = program.graph_signature.input_specs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    weights: dict[str, Tensor] = {}
    for node, spec in zip(nodes, specs, strict=True):
        if spec.kind is InputKind.USER_INPUT or not node.users:
            continue
        name = str(spec.target)
        tensor = program.state_dict[name] if name in program.state_dict else program.constants[name]
        weights[name] = tensor.detach()
    return weights


def lowered(
    program: "ExportedProgram", component: Component, casting: Casting
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]:
    """A function of weights and inputs by name, to be traced by JAX; it gives the outputs by name.

    Inputs and outputs are float32 where they are floating-point, and int32 where they are whole.

    Raises:
        ExportError: the graph holds what cannot be lowered; it names the line of the model.
    """
    for name, (reason, node) in refusals(program).items():
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be lowered to StableHLO; "
            f"{name} in {line_of(node) or 'the graph'} cannot be: {reason}. Run this component on "
            "another backend."
        )
    signature = component.spec.signature
    (results,) = next(node for node in program.graph.nodes if node.op == "output").args
    if len(results) != len(signature.outputs):
        raise ExportError(
            f"{component.name} has the outputs {', '.join(signature.output_names)}; its graph has "
            f"{len(results)} outputs. Correct the signature, or what the module returns."
        )
    specs = program.graph_signature.input_specs

    def run(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[Node, Any] = {}
        names, kinds = iter(signature.input_names), iter(specs)
        for node in program.graph.nodes:
            if node.op == "placeholder":
                spec = next(kinds)
                own = spec.kind is InputKind.USER_INPUT
                given = inputs[next(names)] if own else weights.get(str(spec.target))
                if given is not None:  # a weight that nothing uses
                    values[node] = casting.value(given.astype(_dtype(node)))
            elif node.op == "call_function" and _tensors(node):
                values[node] = _evaluated(node, values, casting)
        return {
            name: _widened(values[result])
            for name, result in zip(signature.output_names, results, strict=True)
        }

    return run


def _evaluated(node: Node, values: Mapping[Node, Any], casting: Casting) -> Any:
    """Compute a node in torch's dtypes, rounded as the casting option requires."""
    args = map_arg(node.args, values.__getitem__)
    given = {name: arg for name, arg in node.kwargs.items() if name not in _PLACES}
    kwargs: dict[str, Any] = dict(map_arg(given, values.__getitem__))
    if node.target is operator.getitem:
        return operator.getitem(*args)
    name = str(node.target)
    if name in PRODUCTS:
        found = PRODUCTS[name](casting.operand, *args, **kwargs)
    elif name in COMPUTED:
        args, kwargs = jax.tree.map(_widened, (args, kwargs))
        found = COMPUTED[name](*args, **{k: v for k, v in kwargs.items() if k != "dtype"})
    else:
        if name in _MAKERS:
            kwargs["dtype"] = _dtype(node)
        found = MOVED[name](*args, **kwargs)
    wanted = [DTYPES[tensor.dtype] for tensor in _tensors(node)]
    if isinstance(found, tuple | list):
        pairs = zip(found, wanted, strict=True)
        return [casting.value(one.astype(dtype)) for one, dtype in pairs]
    return casting.value(found.astype(wanted[0]))


def _dtype(node: Node) -> str:
    (tensor,) = _tensors(node)
    return DTYPES[tensor.dtype]


def _widened(x: Any) -> Any:
    return x.astype("float32") if getattr(x, "dtype", None) in _HALVES else x
