"""What the tests of OpenVINO graphs run, compare and describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from perfuse.backend import Component
from perfuse.spec import ComponentSpec, Dim, Signature, TensorSpec
from perfuse_exporters.openvino.engine import import_openvino

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def inputs_of(component: Component, dims: Mapping[str, int], timestep: float = 961.733) -> Arrays:
    generator = np.random.default_rng(0)
    arrays: Arrays = {}
    for tensor in component.spec.signature.inputs:
        shape = tuple(int(size) for size in tensor.resolve(dims))
        if tensor.dtype == "int64":
            arrays[tensor.name] = generator.integers(0, 500, shape)
        elif tensor.name == "timestep":
            arrays[tensor.name] = np.full(shape, timestep, np.float32)
        else:
            arrays[tensor.name] = generator.standard_normal(shape).astype(np.float32)
    return arrays


def run(path: Path, inputs: Arrays, hint: str = "f32") -> list[Any]:
    """The outputs in the file's order."""
    properties = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": "1"}
    compiled = import_openvino().Core().compile_model(str(path), "CPU", properties)
    return [array.copy() for array in compiled(inputs).values()]


def reference(component: Component, inputs: Arrays, dtype: Any = None) -> list[Any]:
    assert component.build is not None
    module = component.build()
    if dtype is not None:
        module = module.to(dtype)
    tensors = []
    for tensor in component.spec.signature.inputs:
        value = torch.from_numpy(inputs[tensor.name])
        tensors.append(value.to(dtype) if dtype is not None and tensor.dtype == "float" else value)
    with torch.no_grad():
        return [output.float().numpy() for output in module(*tensors)]


def assert_close(got: Any, want: Any) -> None:
    # Both compute in float32 and add up in another order: some 1e-6 of the largest value here.
    # A wrong table, a size baked in or swapped inputs are off by more than 1e-2.
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 3e-5 * max(1.0, float(np.abs(want).max()))


def model_of(path: Path) -> Any:
    return import_openvino().Core().read_model(str(path))


def computes_in(hint: str) -> bool:
    names = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"bf16": "BF16", "f16": "FP16"}[hint] in names


def odd_spec(*outputs: str) -> ComponentSpec:
    def tensor(name: str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float", shape=("batch", 4, 6))

    return ComponentSpec(
        name="odd",
        class_name="Odd",
        folder="odd",
        config={},
        signature=Signature(
            inputs=(tensor("left"), tensor("right")),
            outputs=tuple(tensor(name) for name in outputs),
        ),
    )


def spec_of_one(given: tuple[Any, ...], result: tuple[Any, ...]) -> ComponentSpec:
    """A component of one input, ``given``, and one output of these shapes, of any batch."""
    signature = Signature(
        inputs=(TensorSpec(name="given", dtype="float32", shape=given),),
        outputs=(TensorSpec(name="result", dtype="float", shape=result),),
    )
    return replace(odd_spec(), signature=signature, dims={"batch": Dim(example=2)})
