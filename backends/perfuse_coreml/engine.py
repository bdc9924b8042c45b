"""All that touches Core ML itself. Nobody has executed this file yet: it needs a Mac.

It follows coremltools' documentation (``coremltools.models.CompiledMLModel``, ``utils.compile_model``,
``compute_plan.MLComputePlan``). What can go wrong on the hardware alone goes wrong here.
"""

import platform
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["compile_package", "load", "plan", "version"]

#: The first macOS version that reports on which device an operation will run.
_PLANS = (14, 4)


def version() -> str:
    """The version of macOS, which is that of Core ML."""
    return platform.mac_ver()[0]


def compile_package(package: Path, destination: Path) -> None:
    """Compile a ``.mlpackage`` into a ``.mlmodelc``, for this machine's system."""
    from coremltools.models.utils import compile_model

    compile_model(str(package), str(destination))


def load(compiled: Path, units: str) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """A compiled model, as a function of named arrays."""
    import coremltools

    model = coremltools.models.CompiledMLModel(str(compiled), coremltools.ComputeUnit[units])
    predict: Callable[[dict[str, Any]], Mapping[str, Any]] = model.predict
    return predict


def plan(compiled: Path, units: str) -> dict[str, int]:
    """How many operations Core ML means to run on each device: ``{"NeuralEngine": 812, "CPU": 3}``.

    Empty where the system is too old to tell.
    """
    if tuple(int(part) for part in version().split(".")[:2]) < _PLANS:
        return {}
    import coremltools
    from coremltools.models.compute_plan import MLComputePlan

    found = MLComputePlan.load_from_path(str(compiled), coremltools.ComputeUnit[units])
    counted: Counter[str] = Counter()
    for function in found.model_structure.program.functions.values():
        for operation in function.block.operations:
            usage = found.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None:  # constants run nowhere
                kind = type(usage.preferred_compute_device).__name__
                counted[kind.removeprefix("ML").removesuffix("ComputeDevice")] += 1
    return dict(counted)
