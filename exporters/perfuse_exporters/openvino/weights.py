"""Weights that lie elsewhere as constants of an OpenVINO model, without a copy of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perfuse.backend import Changes, Quantized, StoredTensor, WeightMap, packed
from perfuse.sources import changed_constants

if TYPE_CHECKING:
    import openvino as ov
    from numpy.typing import NDArray

__all__ = ["bind", "rebind"]

_BITS = "bfloat16"
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def bind(
    openvino: Any,
    model: "ov.Model",
    weights: WeightMap,
    tensors: Mapping[str, StoredTensor | Quantized],
    *,
    exact: bool = False,
) -> "list[NDArray[Any]]":
    """Put tensors in the place of the inputs of a graph that are its weights.

    Args:
        openvino: The package.
        model: The graph, which is changed.
        weights: Which inputs are which tensors.
        tensors: The tensors of the module by their names.
        exact: Whether they are to have the graph's dtype in the model. Otherwise one in fewer bits
            is widened when the model is compiled.

    Returns:
        The arrays, whose memory must last as long as the model, and what is compiled of it.

    Raises:
        ExportError: a tensor has numbers that the graph's precision cannot hold.
    """
    from openvino import opset13

    held: list[NDArray[Any]] = []
    rounded: dict[Any, Any] = {}
    ports = {port.get_friendly_name(): port for port in model.get_parameters()}
    # In the order of the constants, in which tensors may be read some at a time.
    for name, constant in weights.constants.items():
        port = ports.get(name)
        if port is None:
            continue
        found = tensors[constant.tensor]
        if isinstance(found, Quantized) and found.scheme.kept and not _only_multiplied(port):
            found = found.dequantized
        if isinstance(found, Quantized):
            node, arrays = _integers(openvino, found, name)
            held += arrays
            _widened(port).replace(node.output(0))
            if found.range is not None:
                _round_inputs(node.output(0), found.range, rounded)
            model.remove_parameter(port)
            continue
        tensor = constant.of(found, exact=exact)
        held.append(tensor.array)
        node = _constant(openvino, tensor, name)
        if tensor.dtype != constant.dtype:
            node = opset13.convert(node, _TYPES[constant.dtype])
            _mark(node)
        for reader in port.output(0).get_target_inputs():
            if reader.get_node().get_type_name() == "Convert":
                _mark(reader.get_node())
        port.output(0).replace(node.output(0))
        model.remove_parameter(port)
    model.validate_nodes_and_infer_types()
    return held


def rebind(
    openvino: Any, model: "ov.Model", weights: WeightMap, changes: Changes
) -> "list[NDArray[Any]]":
    """Put weights with adapters in them in the place of an exported model's.

    Args:
        openvino: The package.
        model: The model, which is changed.
        weights: Which constants are which tensors.
        changes: The adapters.

    Returns:
        The arrays, whose memory must last as long as what is compiled of the model.

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
        held.append(tensor.array)
        nodes[name].output(0).replace(_constant(openvino, tensor, name).output(0))
    model.validate_nodes_and_infer_types()
    return held


def _mark(convert: Any) -> None:
    """Mark what widens a weight, as OpenVINO does in files.

    It would otherwise keep a copy of the weight in float32 beside the one in its own layout.
    """
    convert.get_rt_info()["decompression_0"] = ""


def _constant(openvino: Any, tensor: StoredTensor, name: str) -> Any:
    """A constant that shares the memory of a tensor."""
    kind = getattr(openvino.Type, _TYPES[tensor.dtype])
    shared = openvino.Tensor(tensor.array, list(tensor.array.shape), kind)
    node = openvino.op.Constant(shared)
    node.set_friendly_name(name)
    return node


def _integers(openvino: Any, tensor: Quantized, name: str) -> "tuple[Any, list[NDArray[Any]]]":
    """A tensor in integers and what widens it to float32, as OpenVINO's plugins look for it.

    Returns:
        The node whose output is the tensor, and the arrays whose memory it shares.
    """
    from openvino import Type, opset13

    tensor = _divisible(tensor)
    bits, shape, groups = tensor.scheme.bits, list(tensor.codes.shape), list(tensor.scale.shape)
    grouped = tensor.scheme.group is not None
    kind = getattr(Type, f"{'i' if tensor.zero is None else 'u'}{bits}")
    held = []

    def constant(array: "NDArray[Any]", sizes: list[int], kind: Any, name: str) -> Any:
        held.append(array)
        node = openvino.op.Constant(openvino.Tensor(array, sizes, kind))
        node.set_friendly_name(name)
        return node

    def whole(tensor: "NDArray[Any]", sizes: list[int], name: str) -> Any:
        codes = packed(tensor) if bits == 4 else tensor
        return opset13.convert(constant(codes, sizes, kind, name), "f32")

    each = [*groups, 1] if grouped else groups
    cut = [*groups, shape[1] // groups[1]] if grouped else shape
    node = whole(tensor.codes, cut, f"{name}/codes")
    if tensor.zero is not None:
        node = opset13.subtract(node, whole(tensor.zero, each, f"{name}/zero"))
    if tensor.offset is not None:
        zero = constant(-tensor.offset / tensor.scale, each, Type.f32, f"{name}/zero")
        node = opset13.subtract(node, zero)
    node = opset13.multiply(node, constant(tensor.scale, each, Type.f32, f"{name}/scale"))
    if grouped:
        sizes = opset13.constant(shape, Type.i64)
        node = opset13.reshape(node, sizes, special_zero=False)
    return node, held


def _divisible(tensor: Quantized) -> Quantized:
    """The same numbers with a scale in each group that its offset can be divided by.

    Plugins know no offset but ``(codes - zero) * scale``, of which it is ``-zero * scale``. Where all
    numbers of a group are alike its scale may be 0; the number is its scale then, and its codes are 0.
    """
    import numpy as np

    if tensor.offset is None or tensor.scale.all():
        return tensor
    alike = tensor.scale == 0
    scale = np.where(tensor.offset == 0, np.float32(1), tensor.offset)
    each = alike.repeat(tensor.codes.shape[1] // alike.shape[1], 1)
    return replace(
        tensor,
        codes=np.where(each, np.int8(0), tensor.codes),
        scale=np.where(alike, scale, tensor.scale),
    )


def _only_multiplied(port: Any) -> bool:
    """Whether a matrix is only read by products that sum along its rows.

    A look-up in a table would widen all of it.
    """
    return all(
        one.get_node().get_type_name() == "MatMul"
        and one.get_index() == 1
        and one.get_node().get_attributes()["transpose_b"]
        for one in _widened(port).get_target_inputs()
    )


def _round_inputs(weight: Any, ends: tuple[float, float], known: dict[Any, Any]) -> None:
    """Round what a weight is multiplied with to 256 steps of a range: plugins then do so in integers.

    Args:
        weight: The output that is the weight.
        ends: Those of the range.
        known: What is rounded so already, for layers that are given the same.
    """
    import numpy as np
    from openvino import opset13

    for target in weight.get_target_inputs():
        reader = target.get_node()
        if reader.get_type_name() in ("MatMul", "Convolution") and target.get_index() == 1:
            given = reader.input_value(0)
            key = given.get_node().get_name(), given.get_index(), ends
            if key not in known:
                low, high = (opset13.constant(np.array(end, np.float32)) for end in ends)
                known[key] = opset13.fake_quantize(given, low, high, low, high, 256)
            reader.input(0).replace_source_output(known[key].output(0))


def _widened(port: Any) -> Any:
    """The output that has a weight in float32: of the only conversion behind it, or its own."""
    output = port.output(0)
    readers = [one.get_node() for one in output.get_target_inputs()]
    if output.get_element_type().to_string() != "f32" and len(readers) == 1:
        return readers[0].output(0)
    return output
