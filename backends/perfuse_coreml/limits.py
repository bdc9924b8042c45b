"""What Core ML's compute units can take. Imports no engine."""

from perfuse.backend import Limits

_TYPED = "https://apple.github.io/coremltools/docs-guides/source/typed-execution.html"
_INPUTS = "https://apple.github.io/coremltools/docs-guides/source/model-input-and-output-types.html"
_SHAPES = "https://apple.github.io/coremltools/docs-guides/source/flexible-inputs.html"
_WIDE = {"float64": "", "complex64": "", "complex128": "", "bfloat16": ""}
_INTEGERS = {"int64": "given as int32, which token ids and positions fit"}
_SOURCES = {
    "precisions": _TYPED,
    "dtypes": _INPUTS,
    "fixed_sizes": _SHAPES,
    "max_rank": "https://github.com/apple/coremltools/issues/1723",
    "unknown": _TYPED,
}


def _limits(float32: str, *unknown: str) -> Limits:
    return Limits(
        precisions={"float32": float32, "float16": ""},
        dtypes={**_WIDE, **_INTEGERS},
        fixed_sizes=True,
        max_rank=5,
        unknown=unknown,
        sources=_SOURCES,
    )


_PLAN = "which operators run on which unit: Core ML decides when it loads the file"
_ENGINE = "on the CPU, as the Neural Engine computes in float16 alone"

#: By compute units, as Core ML names them.
LIMITS = {
    "ALL": _limits("on the CPU and the GPU, as the Neural Engine has none", _PLAN),
    "CPU_AND_NE": _limits(_ENGINE, _PLAN),
    "CPU_AND_GPU": _limits("", _PLAN),
    "CPU_ONLY": _limits(""),
}
