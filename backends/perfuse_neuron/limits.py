"""What Neuron devices can take. Imports no engine."""

from perfuse.backend import Limits

_DOCS = "https://awsdocs-neuron.readthedocs-hosted.com/en/latest"
_TYPES = f"{_DOCS}/about-neuron/arch/neuron-features/data-types.html"
_COMPILER = f"{_DOCS}/compiler/neuronx-cc/api-reference-guide/index.html"
_ERRORS = f"{_DOCS}/compiler/error-codes/index.html"

#: NeuronCore v2 and later: Inf2, Trn1, Trn2.
LIMITS = {
    "*": Limits(
        precisions={
            "float32": "",
            "float16": "",
            "bfloat16": "",
        },
        dtypes={
            "float64": "",
            "complex64": "",
            "complex128": "",
            "int64": "computed in int32, which token ids and positions fit",
        },
        fixed_sizes=True,
        unknown=("what the compiler refuses: only its own run says",),
        sources={
            "precisions": _TYPES,
            "dtypes": _COMPILER,
            "fixed_sizes": _ERRORS,
            "unknown": _ERRORS,
        },
    ),
}
