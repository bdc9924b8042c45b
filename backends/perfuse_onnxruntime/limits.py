"""What ONNX Runtime's execution providers can take. Imports no engine."""

from perfuse.backend import Limits

_SOURCE = "https://onnxruntime.ai/docs/execution-providers/"
_CPU_FALLBACK = (
    "operators that a provider lacks run on the CPU; --option cpu_fallback=false refuses"
)

#: By device. Except for the CPU's, a provider's kernels differ between builds.
LIMITS = {
    "cpu": Limits(
        precisions={
            "float32": "",
            "float16": "computed in float32 and rounded between the operators",
        },
        executed="x86-64, Linux",
        sources={
            "precisions": "https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md"
        },
    ),
    "*": Limits(
        precisions={"float32": "", "float16": ""},
        notes=(_CPU_FALLBACK,),
        unknown=("which operators the provider has kernels for",),
        sources={"precisions": _SOURCE, "notes": _SOURCE, "unknown": _SOURCE},
    ),
}
