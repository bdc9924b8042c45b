"""What XLA's devices can take, as these programs are written. Imports no engine."""

from perfuse.backend import Limits

_XLA = "https://openxla.org/xla"
_PRECISIONS = {"float32": "", "float16": "", "bfloat16": ""}
_DTYPES = {"int64": "whole numbers are int32 in the program, and checked", "float64": ""}

#: By device, as JAX names them.
LIMITS = {
    "cpu*": Limits(
        precisions=_PRECISIONS,
        dtypes=_DTYPES,
        fixed_sizes=True,
        executed="x86-64, Linux",
        sources={"fixed_sizes": _XLA},
    ),
    "*": Limits(
        precisions=_PRECISIONS,
        dtypes=_DTYPES,
        fixed_sizes=True,
        unknown=("whether its compiler takes the program, which has run on none but the CPU",),
        sources={"fixed_sizes": _XLA},
    ),
}
