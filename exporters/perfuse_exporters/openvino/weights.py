"""Weights that lie elsewhere as constants of an OpenVINO model, without a copy of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perfuse.backend import StoredTensor, WeightMap

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["bind"]

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
        kind = getattr(openvino.Type, _TYPES[tensor.dtype])
        # Shared: OpenVINO reads the memory of the array.
        shared = openvino.Tensor(tensor.array, list(tensor.array.shape), kind)
        node = openvino.op.Constant(shared)
        node.set_friendly_name(port.get_friendly_name())
        if tensor.dtype != constant.dtype:
            node = opset13.convert(node, _TYPES[constant.dtype])
            # Without OpenVINO's mark of weights that are stored in fewer bits, it would keep a copy
            # of each in float32 beside the one in its own layout.
            node.get_rt_info()["decompression_0"] = ""
        port.output(0).replace(node.output(0))
        model.remove_parameter(port)
    model.validate_nodes_and_infer_types()
    return held
