"""The operators and types that the Neuron compiler supports, by AWS's documentation. Data only.

Three pages name operators: the compiler's list, which is of XLA's operators and old; its error
codes, which say what it takes of some that the list leaves out; and the targets of custom calls.
The page of torch-neuronx's own operators holds forty-two, without a convolution, and adds nothing.
What torch-xla makes of a PyTorch operator was looked up in its sources for those that it composes
(sigmoid, gelu, argmax, nearest upsampling, group and layer norm); the rest are one operator of XLA
under the same name.

The compiler that is installed may take more: ``neuronx-cc list-operators --framework XLA`` prints
what it takes, and ``torch_neuronx.analyze`` tries a model operator by operator.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "AS_INT32",
    "DOCUMENTED",
    "FLOATING",
    "INTEGER_AS_FLOAT",
    "LARGEST_OUTPUT",
    "LOWERED",
    "MOVES",
    "SOURCES",
    "Source",
]

_DOCS = "https://awsdocs-neuron.readthedocs-hosted.com/en/latest"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A page, and of which version it is."""

    url: str
    #: The version that it describes, or a commit.
    version: str
    #: The date that it bears, or else that on which it was read: ISO 8601.
    date: str


SOURCES: Mapping[str, Source] = {
    "list": Source(
        url=f"{_DOCS}/release-notes/components/compiler.html",  # section "Supported Operators"
        version="neuronx-cc 2.25.3371.0",
        date="2026-05-21",
    ),
    "errors": Source(
        url=f"{_DOCS}/compiler/error-codes/index.html",
        version="Neuron 2.32.0",
        date="2026-07-14",
    ),
    "custom calls": Source(
        url=f"{_DOCS}/compiler/error-codes/EHCA005.html", version="latest", date="2026-11-20"
    ),
    "options": Source(
        url=f"{_DOCS}/compiler/neuronx-cc/api-reference-guide/index.html",
        version="neuronx-cc 2.27.5334.0",
        date="2026-08-17",
    ),
    "types": Source(
        url=f"{_DOCS}/about-neuron/arch/neuron-features/data-types.html",
        version="Neuron 2.32.0",
        date="2026-08-17",
    ),
    "lowering": Source(
        url="https://github.com/pytorch/xla/tree/029d279f1e4c744ef6df964740cd636b83e9b4d3/torch_xla/csrc",
        version="029d279f1e4c",
        date="2026-11-20",
    ),
}

_LIST = [
    "Abs",
    "Add",
    "Atan2",
    "Batchnorm",
    "Batchnormgrad",
    "Batchnorminference",
    "BitcastConvertType",
    "Broadcast",
    "BroadcastInDim",
    "Ceil",
    "Clamp",
    "Compare",
    "Concatenate",
    "Constant",
    "ConstantLiteral",
    "ConvertElementType",
    "Cos",
    "Div",
    "Dot",
    "DotGeneral",
    "DynamicUpdateSlice",
    "Eq",
    "Exp",
    "Floor",
    "Gather",
    "Ge",
    "GetTupleElement",
    "Gt",
    "Iota",
    "Le",
    "Log",
    "LogicalAnd",
    "LogicalNot",
    "Lt",
    "Max",
    "Min",
    "Mul",
    "Ne",
    "Neg",
    "Pad",
    "Pow",
    "Reshape",
    "Rev",
    "RngBitGenerator",
    "RngUniform",
    "Rsqrt",
    "Scatter",
    "Select",
    "SelectAndScatter",
    "ShiftRightLogical",
    "Sign",
    "Sin",
    "Slice",
    "Sqrt",
    "Sub",
    "Tanh",
    "Transpose",
    "Tuple",
]
#: "Min, Max, Add and Mul are the only supported computations" of a Reduce.
_REDUCTIONS = ("Reduce by Add", "Reduce by Max", "Reduce by Min", "Reduce by Mul")

#: XLA operators that a page names, and which page: a key of ``SOURCES``.
DOCUMENTED: Mapping[str, str] = {
    **dict.fromkeys((*_LIST, *_REDUCTIONS), "list"),
    # NCC_EVRF010 and NCC_EVRF011 refuse dilations of the input together with others; NCC_EVRF013
    # refuses integers; NCC_EVRF017 to 019 refuse dilations and several operands.
    **dict.fromkeys(("Convolution", "TopK", "ReduceWindow"), "errors"),
    # As AwsNeuronErf, which the compiler has beside AwsNeuronGelu and AwsNeuronSilu.
    "Erf": "custom calls",
}

#: NeuronCore-v2 and later compute in these; the page names no 64-bit type (NCC_ESPP004).
FLOATING = ("float32", "float16", "bfloat16")

#: "The output tensor size limit of 4GB was exceeded": NCC_EVRF024. In bytes.
LARGEST_OUTPUT = 4 * 2**30

#: The documentation of ``--native-int64`` on all other operations on 64-bit integers.
AS_INT32 = (
    "the compiler computes 64-bit integers in 32 bits (--native-int64=default), which is exact "
    "below 2^31"
)
#: XLA operators without integer support, by the documentation of ``--implicit-integer-downcast``.
INTEGER_AS_FLOAT: Mapping[str, str] = {
    **dict.fromkeys(
        ("Dot", "DotGeneral"),
        "has no integer arithmetic: it is done in float32, exact to 2^24 (NCC_EVRF035)",
    ),
    "Scatter": "has no integer arithmetic: it is done in float32, exact to 2^24 (NCC_EVRF060)",
    "Pow": "has no 64-bit integers: it is done in 32 bits, exact below 2^31 (NCC_EVRF062)",
}

#: Operators that move values and compute none, so that the width of an integer changes nothing.
MOVES = frozenset(
    [
        "alias",
        "cat",
        "clone",
        "constant_pad_nd",
        "detach",
        "expand",
        "full",
        "full_like",
        "lift_fresh_copy",
        "permute",
        "repeat",
        "select",
        "slice",
        "split_with_sizes",
        "squeeze",
        "stack",
        "t",
        "transpose",
        "unbind",
        "unsqueeze",
        "view",
        "_to_copy",
        "_unsafe_view",
        "where",
    ]
)

_ELEMENTWISE = {
    "abs": "Abs",
    "atan2": "Atan2",
    "ceil": "Ceil",
    "cos": "Cos",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logical_and": "LogicalAnd",
    "bitwise_and": "LogicalAnd",
    "logical_not": "LogicalNot",
    "bitwise_not": "LogicalNot",
    "maximum": "Max",
    "minimum": "Min",
    "neg": "Neg",
    "reciprocal": "Div",
    "rsqrt": "Rsqrt",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
    "erf": "Erf",
}
_COMPARISONS = {"eq": "Eq", "ge": "Ge", "gt": "Gt", "le": "Le", "lt": "Lt", "ne": "Ne"}
_NORMALISATION = ("Batchnorm", "Mul", "Add", "Broadcast", "Reshape")

#: PyTorch's core operators, and the XLA operators that torch-xla makes of each.
LOWERED: Mapping[str, tuple[str, ...]] = {
    **{name: (xla,) for name, xla in _ELEMENTWISE.items()},
    **{name: (xla, "Broadcast") for name, xla in _COMPARISONS.items()},
    "add": ("Add", "Mul", "Broadcast"),
    "sub": ("Sub", "Mul", "Broadcast"),
    "mul": ("Mul", "Broadcast"),
    "div": ("Div", "Broadcast"),
    "pow": ("Pow", "Broadcast"),
    "rsub": ("Sub", "Mul", "Broadcast"),
    "clamp": ("Clamp",),
    "relu": ("Max",),
    "hardtanh": ("Clamp",),
    # BuildSigmoid: 1/2 + 1/2 tanh(x/2). BuildGelu: x/2 (1 + erf(x / sqrt 2)).
    "sigmoid": ("Tanh", "Mul", "Add"),
    "gelu": ("Erf", "Mul", "Add"),
    "silu": ("Tanh", "Mul", "Add"),
    "where": ("Select", "Broadcast"),
    "mm": ("Dot",),
    "bmm": ("DotGeneral",),
    "addmm": ("Dot", "Mul", "Add", "Broadcast"),
    "baddbmm": ("DotGeneral", "Mul", "Add", "Broadcast"),
    "convolution": ("Convolution", "Add", "Broadcast"),
    "_softmax": ("Reduce by Max", "Sub", "Exp", "Reduce by Add", "Div", "BroadcastInDim"),
    "_log_softmax": ("Reduce by Max", "Sub", "Exp", "Reduce by Add", "Log", "BroadcastInDim"),
    "sum": ("Reduce by Add",),
    "mean": ("Reduce by Add", "Mul"),
    "var": ("Reduce by Add", "Sub", "Mul"),
    "prod": ("Reduce by Mul",),
    "amax": ("Reduce by Max",),
    "amin": ("Reduce by Min",),
    "any": ("Reduce by Or",),
    "all": ("Reduce by And",),
    # A reduction of values and indices at once, with a comparison of its own.
    "argmax": ("Reduce by a comparison of pairs",),
    "argmin": ("Reduce by a comparison of pairs",),
    # math_group_norm and math_native_layer_norm, which call native_batch_norm.
    "native_group_norm": _NORMALISATION,
    "native_layer_norm": _NORMALISATION,
    "_native_batch_norm_legit_no_training": ("Batchnorminference",),
    "avg_pool2d": ("ReduceWindow", "Div"),
    "max_pool2d_with_indices": ("ReduceWindow", "Sort"),
    # BuildResize, where the device is not a TPU: a Gather, and weights that sum to one by a product.
    "upsample_nearest2d": ("Iota", "Mul", "Floor", "Gather", "DotGeneral", "Transpose"),
    "embedding": ("Gather", "Reshape"),
    "index": ("Gather", "Reshape", "Transpose"),
    "index_select": ("Gather",),
    "gather": ("Gather",),
    "index_put": ("Scatter",),
    "scatter": ("Scatter",),
    "scatter_add": ("Scatter",),
    "sort": ("Sort",),
    "topk": ("TopK",),
    "cumsum": ("ReduceWindow",),
    "arange": ("Iota", "Mul", "Add", "ConvertElementType"),
    "full": ("Constant", "Broadcast"),
    "full_like": ("Constant", "Broadcast"),
    "scalar_tensor": ("Constant",),
    "_to_copy": ("ConvertElementType",),
    **dict.fromkeys(("alias", "clone", "detach", "lift_fresh_copy"), ()),
    **dict.fromkeys(("squeeze", "unsqueeze", "view", "_unsafe_view"), ("Reshape",)),
    **dict.fromkeys(("permute", "t", "transpose"), ("Transpose",)),
    **dict.fromkeys(("select", "slice", "split_with_sizes", "unbind"), ("Slice", "Reshape")),
    "cat": ("Concatenate",),
    "stack": ("Reshape", "Concatenate"),
    "expand": ("Broadcast", "BroadcastInDim"),
    "repeat": ("Concatenate",),
    "constant_pad_nd": ("Pad",),
    "flip": ("Rev",),
}
