"""Attention in ONNX files: against PyTorch's, on engines that have the operator and that have not."""

from collections.abc import Callable
from dataclasses import replace
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
#: Heads and their width: as in Stable Diffusion's UNet, as in its autoencoder; with a mask that differs
#: from query to query, and with one that hides keys.
CASES = (
    "float32 8 40",
    "float32 1 512",
    "float32 4 8 queries",
    "float32 4 8 1",
    "float16 8 40",
    "float16 4 8 1",
)


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


def component(precision: str, heads: int, width: int, mask: str = "") -> Component:
    channels = heads * width
    inputs = [
        TensorSpec(name="query", dtype="float", shape=("batch", "queries", channels)),
        TensorSpec(name="context", dtype="float", shape=("batch", "keys", channels)),
    ]
    if mask:
        shape = ("batch", 1, 1 if mask == "1" else mask, "keys")
        inputs.append(TensorSpec(name="mask", dtype="float", shape=shape))
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
    precision, heads, width, *mask = request.param.split()
    made = component(precision, int(heads), int(width), *mask)
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
    if "mask" in made.signature.input_names and made.signature.input("mask").shape[2] != 1:
        assert not model.functions and {one.domain for one in model.opset_import} == {""}
        return
    assert [(one.domain, one.name) for one in model.functions] == [
        ("com.microsoft", "MultiHeadAttention")
    ]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MultiHeadAttention") == 1
    assert kinds.count("Transpose") == len(made.signature.inputs) - 2  # of the mask
    assert "Softmax" not in kinds


class Telling(Attention):
    """Attention whose mask says by its sign which keys count."""

    def forward(
        self, query: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor]:
        assert mask is not None
        return super().forward(query, context, mask >= 0)


@pytest.mark.parametrize("kind", [Attention, Telling])
def test_keys_that_are_hidden_do_not_count(kind: type[Attention], tmp_path: Path) -> None:
    made = replace(component("float32", 4, 8, "1"), build=lambda: kind(4).eval())
    path = OnnxExporter().export(made, tmp_path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = inputs_of(made, 2, 9, 12)
    seen = {"query": inputs["query"], "context": inputs["context"][:, :7]}
    wanted = Attention(4)(*(torch.from_numpy(array) for array in seen.values()))[0].detach().numpy()
    for hidden in (-np.inf, np.finfo(np.float32).min, -1e4):
        inputs["mask"] = np.zeros((2, 1, 1, 12), np.float32)
        inputs["mask"][..., 7:] = hidden
        assert np.abs(session.run(None, inputs)[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
        inputs["mask"][1] = hidden
        assert np.isfinite(session.run(None, inputs)[0]).all()
