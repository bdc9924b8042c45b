"""Weights that lie elsewhere as constants of an OpenVINO model, without a copy of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perfuse.backend import Changes, StoredTensor, WeightMap
from perfuse.sources import changed_constants

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["bind", "rebind"]

_BITS = "bfloat16"
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def bind(
    openvino: Any,
    model: "ov.Model",
    weights: WeightMap,
    tensors: Mapping[str, StoredTensor],
    *,
    exact: bool = False,
) -> list[StoredTensor]:
    """Put tensors in the place of the inputs of a graph that are its weights.

    Args:
        openvino: The package.
        model: The graph, which is changed.
        weights: Which inputs are which tensors.
        tensors: The tensors of the module by their names.
        exact: Whether they are to have the graph's dtype in the model. Otherwise one in fewer bits
            is widened when the model is compiled.

    Returns:
        The tensors, whose memory must last as long as the model, and what is compiled of it.

    Raises:
        ExportError: a tensor has numbers that the graph's precision cannot hold.
    """
    from openvino import opset13

    held = []
    for port in model.get_parameters():
        constant = weights.constants.get(port.get_friendly_name())
        if constant is None:
            continue
        tensor = constant.of(tensors[constant.tensor], exact=exact)
        held.append(tensor)
        node = _constant(openvino, tensor, port.get_friendly_name())
        if tensor.dtype != constant.dtype:
            node = opset13.convert(node, _TYPES[constant.dtype])
            # Without OpenVINO's mark of weights that are stored in fewer bits, it would keep a copy
            # of each in float32 beside the one in its own layout.
            node.get_rt_info()["decompression_0"] = ""
        port.output(0).replace(node.output(0))
        model.remove_parameter(port)
    model.validate_nodes_and_infer_types()
    return held


def rebind(
    openvino: Any, model: "ov.Model", weights: WeightMap, changes: Changes
) -> list[StoredTensor]:
    """Put weights with adapters in them in the place of an exported model's.

    Args:
        openvino: The package.
        model: The model, which is changed.
        weights: Which constants are which tensors.
        changes: The adapters.

    Returns:
        The tensors, whose memory must last as long as what is compiled of the model.

    Raises:
        ExportError: a weight has numbers that the model's precision cannot hold.
    """
    import numpy as np

    nodes = {
        node.get_friendly_name(): node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant"
    }

    def stored(name: str) -> StoredTensor:
        dtype, array = weights.constants[name].dtype, nodes[name].data
        return StoredTensor(dtype=dtype, array=array.view(np.uint16) if dtype == _BITS else array)

    held = []
    for name, tensor in changed_constants(weights, changes, stored):
        held.append(tensor)
        nodes[name].output(0).replace(_constant(openvino, tensor, name).output(0))
    model.validate_nodes_and_infer_types()
    return held


def _constant(openvino: Any, tensor: StoredTensor, name: str) -> Any:
    """A constant that shares the memory of a tensor."""
    kind = getattr(openvino.Type, _TYPES[tensor.dtype])
    shared = openvino.Tensor(tensor.array, list(tensor.array.shape), kind)
    node = openvino.op.Constant(shared)
    node.set_friendly_name(name)
    return node
