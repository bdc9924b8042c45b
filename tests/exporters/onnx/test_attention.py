"""Attention in ONNX files: against PyTorch's, on engines that have the operator and that have not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch.nn import functional as F

from perfuse.backend import Component
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse_exporters.onnx.exporter import OnnxExporter

pytestmark = pytest.mark.export

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
#: Batch, queries and keys: on both sides of what the graph was captured at, and of a kernel's blocks.
SIZES = ((1, 7, 7), (2, 64, 77), (3, 1, 1), (2, 300, 5), (1, 1025, 1025))
#: Heads and their width: as in Stable Diffusion's UNet, as in its autoencoder, with a mask.
CASES = ("float32 8 40", "float32 1 512", "float32 4 8 masked", "float16 8 40")


class Attention(torch.nn.Module):
    """Attention of [B, N, H * D] to [B, S, H * D]."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = torch.nn.Parameter(torch.full((1,), 0.5))

    def forward(
        self, query: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor]:
        q, k, v = (
            tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tokens in (query * self.temperature, context, context * 2)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=q.shape[-1] ** -0.4)
        return (out.transpose(1, 2).flatten(2),)


def component(precision: str, heads: int, width: int, *, masked: bool) -> Component:
    channels = heads * width
    inputs = [
        TensorSpec(name="query", dtype="float", shape=("batch", "queries", channels)),
        TensorSpec(name="context", dtype="float", shape=("batch", "keys", channels)),
    ]
    if masked:
        inputs.append(TensorSpec(name="mask", dtype="float", shape=("batch", 1, "queries", "keys")))
    output = TensorSpec(name="out", dtype="float", shape=("batch", "queries", channels))
    spec = ComponentSpec(
        name="attention",
        class_name="Attention",
        folder="attention",
        config={},
        signature=Signature(inputs=tuple(inputs), outputs=(output,)),
    )
    return Component(spec=spec, build=lambda: Attention(heads).eval(), precision=precision)


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Component, Path]:
    precision, heads, width, *masked = request.param.split()
    made = component(precision, int(heads), int(width), masked=bool(masked))
    return made, OnnxExporter().export(made, tmp_path_factory.mktemp("attention"))


def inputs_of(made: Component, batch: int, queries: int, keys: int) -> Arrays:
    generator = np.random.default_rng(0)
    dims = {"batch": batch, "queries": queries, "keys": keys}
    return {
        tensor.name: generator.standard_normal(
            [int(size) for size in tensor.resolve(dims)], dtype=np.float32
        ).astype(made.precision)
        for tensor in made.spec.signature.inputs
    }


def check(made: Component, run: Callable[[Arrays], Any], sizes: tuple[int, int, int]) -> None:
    assert made.build is not None
    inputs = inputs_of(made, *sizes)
    with torch.no_grad():
        (wanted,) = made.build()(*(torch.from_numpy(a).float() for a in inputs.values()))
    got = run(inputs)
    assert got.dtype == np.dtype(made.precision)
    # Two orders of summation; in half precision a rounding of the operands, too.
    tolerance = 1e-5 if made.precision == "float32" else 4e-3
    assert np.abs(got.astype(np.float32) - wanted.numpy()).max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_onnx_runtime_computes_it(
    case: tuple[Component, Path], sizes: tuple[int, int, int]
) -> None:
    made, path = case
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    check(made, lambda inputs: session.run(None, inputs)[0], sizes)


def test_an_engine_without_the_operator_computes_it(case: tuple[Component, Path]) -> None:
    made, path = case
    evaluator = ReferenceEvaluator(str(path))
    for sizes in SIZES[:3]:
        check(made, lambda inputs: evaluator.run(None, inputs)[0], sizes)


def test_openvino_reads_the_file(case: tuple[Component, Path]) -> None:
    openvino = pytest.importorskip("openvino")
    made, path = case
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for sizes in SIZES[:3]:
        check(made, lambda inputs: compiled(list(inputs.values()))[0], sizes)


def test_the_file_is_valid_and_copies_nothing_for_the_operator(
    case: tuple[Component, Path],
) -> None:
    made, path = case
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    if "mask" in made.signature.input_names:
        assert not model.functions and {one.domain for one in model.opset_import} == {""}
        return
    assert [(one.domain, one.name) for one in model.functions] == [
        ("com.microsoft", "MultiHeadAttention")
    ]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MultiHeadAttention") == 1
    assert not {"Transpose", "Softmax"} & set(kinds)
