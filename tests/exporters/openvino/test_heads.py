"""The rewriting of attention, by which the sizes of its heads are known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from tests.exporters.openvino.graphs import assert_close, inputs_of, odd_spec, reference, run

from perfuse.backend import Component
from perfuse.spec import Signature, TensorSpec
from perfuse_exporters.openvino.engine import import_openvino
from perfuse_exporters.openvino.exporter import OpenVinoExporter

pytestmark = pytest.mark.export


class Square(torch.nn.Module):
    """Attention of four tokens with four heads, whose queries and keys are turned."""

    def forward(self, left: Any, right: Any) -> Any:
        query, key, value = (left.view(2, 4, 4, 24).transpose(1, 2)).chunk(3, dim=-1)
        turned = (query * right, key * right, value)
        seen = torch.nn.functional.scaled_dot_product_attention(*turned, attn_mask=right[:, :4] > 0)
        plain = torch.nn.functional.scaled_dot_product_attention(*turned, scale=0.5)
        return ((seen + plain).transpose(1, 2).flatten(2) + plain.transpose(1, 2).flatten(2),)


def test_attention_of_as_many_tokens_as_heads(tmp_path: Path) -> None:
    """OpenVINO takes one for the other where they are as many, and where the sizes are known."""
    inputs = (
        TensorSpec(name="left", dtype="float", shape=(2, 4, 96)),
        TensorSpec(name="right", dtype="float", shape=(4, 8)),
    )
    output = TensorSpec(name="result", dtype="float", shape=(2, 4, 32))
    signature = Signature(inputs=inputs, outputs=(output,))
    component = Component(spec=replace(odd_spec(), signature=signature), build=Square)
    path = OpenVinoExporter().export(component, tmp_path)
    code = f"import openvino; openvino.Core().compile_model({str(path)!r}, 'CPU')"
    subprocess.run([sys.executable, "-c", code], check=True)  # which it ended once
    arrays = inputs_of(component, {}) | {"right": np.sin(np.arange(32, dtype="f")).reshape(4, 8)}
    (got,), (want,) = run(path, arrays), reference(component, arrays)
    assert_close(got, want)


def test_the_sizes_of_heads_are_known(exported: Callable[[str, str], Path]) -> None:
    """Also where the number of tokens follows from height and width; else attention is slower."""
    folder = exported("sdxl", "openvino")
    model = import_openvino().Core().read_model(folder / "unet" / "openvino_model.xml")
    kind = "ScaledDotProductAttention"
    attentions = [op for op in model.get_ops() if op.get_type_name() == kind]
    assert attentions
    for op in attentions:
        for place in range(3):
            _, heads, _, width = op.get_input_partial_shape(place)
            assert heads.is_static and width.is_static
