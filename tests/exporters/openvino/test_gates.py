"""The rewriting of gated networks, which the CPU plugin would join."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from tests.exporters.openvino.graphs import (
    assert_close,
    computes_in,
    inputs_of,
    model_of,
    odd_spec,
    reference,
    run,
)

from perfuse.backend import Component
from perfuse.spec import Dim, Signature, TensorSpec
from perfuse_exporters.openvino.exporter import OpenVinoExporter
from perfuse_exporters.openvino.gates import split_gates

pytestmark = pytest.mark.export


class Gated(torch.nn.Module):
    """A language model's feed-forward network; ``fused`` has its gate and the rest in one matrix."""

    def __init__(self, activation: Any, *, fused: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        sizes = ((128, 32),) if fused else ((64, 32), (64, 32))
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(inner, outer, bias=False) for outer, inner in (*sizes, (32, 64))
        )
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
            parameter.data = parameter.data.bfloat16().float()  # which the file holds exactly
        self.activation = activation

    def forward(self, left: Any) -> Any:
        *first, last = self.layers
        halves = [layer(left) for layer in first]
        gate, up = halves if len(halves) == 2 else halves[0].chunk(2, dim=-1)
        return (last(self.activation(gate) * up),)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu-tanh"])
def test_a_gated_network_in_half_precision_is_not_joined(
    kind: str, fused: bool, tmp_path: Path
) -> None:
    activation = {
        "silu": torch.nn.SiLU(),
        "gelu": torch.nn.GELU(),
        "gelu-tanh": torch.nn.GELU(approximate="tanh"),
    }[kind]
    tensor = TensorSpec(name="left", dtype="float", shape=("batch", "sequence", 32))
    signature = Signature(inputs=(tensor,), outputs=(replace(tensor, name="result"),))
    spec = replace(
        odd_spec(), signature=signature, dims={"batch": Dim(example=2), "sequence": Dim(example=7)}
    )
    component = Component(
        spec=spec, build=partial(Gated, activation, fused=fused), precision="bfloat16"
    )
    path = OpenVinoExporter().export(component, tmp_path)
    assert not {op.get_type_name() for op in model_of(path).get_ops()} & {"Swish", "Gelu"}
    arrays = inputs_of(component, {"batch": 2, "sequence": 9})
    assert_close(run(path, arrays)[0], reference(component, arrays)[0])
    # Joined, it ended the process where the processor has matrix units.
    np.savez(tmp_path / "inputs.npz", **arrays)
    code = (
        "import sys, numpy, openvino\n"
        "hint = {'INFERENCE_PRECISION_HINT': 'bf16', 'INFERENCE_NUM_THREADS': '1'}\n"
        "model = openvino.Core().compile_model(sys.argv[1], 'CPU', hint)\n"
        "model(dict(numpy.load(sys.argv[2])))\n"
    )
    if computes_in("bf16"):
        given = [str(path), str(tmp_path / "inputs.npz")]
        subprocess.run([sys.executable, "-c", code, *given], check=True)


def test_a_gate_that_came_through_onnx_is_not_joined() -> None:
    """Its activation is a product with a sigmoid there, which the plugin joins all the same."""
    from openvino import opset13 as ops

    x = ops.parameter([1, 9, 32], np.float32)
    rng = np.random.default_rng(0)
    gate, up, down = (
        rng.standard_normal(size).astype(np.float32) for size in ((32, 64), (32, 64), (64, 32))
    )
    left, right = ops.matmul(x, gate, False, False), ops.matmul(x, up, False, False)
    gated = ops.multiply(ops.multiply(left, ops.sigmoid(left)), right)
    model = openvino.Model([ops.matmul(gated, down, False, False)], [x], "gated")
    given = rng.standard_normal((1, 9, 32)).astype(np.float32)
    gates = given @ gate
    want = (gates / (1 + np.exp(-gates)) * (given @ up)) @ down
    split_gates(model)
    last = model.get_results()[0].input_value(0).get_node()
    share, product = (one.get_node() for one in last.input_value(0).get_node().input_values())
    assert share.get_type_name() == "Sigmoid"
    assert [one.get_node().get_type_name() for one in product.input_values()] == ["MatMul"] * 2
    got = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)[0]
    assert_close(got, want)
