"""The rewriting of normalisations that are modulated."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from tests.exporters.openvino.graphs import assert_close, inputs_of, odd_spec, reference, run

from perfuse.backend import Component
from perfuse.spec import Signature, TensorSpec
from perfuse_exporters.openvino.exporter import OpenVinoExporter

pytestmark = pytest.mark.export


class Modulated(torch.nn.Module):
    """A block of a ResNet whose time scales and shifts what was normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(4, 8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.norm.parameters():
            torch.nn.init.normal_(parameter, generator=generator)

    def forward(self, left: Any, right: Any) -> Any:
        scale, shift = right[..., None, None].chunk(2, dim=1)
        return (self.norm(left) * (1 + scale) + shift,)


def test_a_normalisation_that_is_modulated_compiles_at_a_known_size(tmp_path: Path) -> None:
    inputs = (
        TensorSpec(name="left", dtype="float", shape=(2, 8, 6, 6)),
        TensorSpec(name="right", dtype="float", shape=(2, 16)),
    )
    output = TensorSpec(name="result", dtype="float", shape=(2, 8, 6, 6))
    signature = Signature(inputs=inputs, outputs=(output,))
    component = Component(spec=replace(odd_spec(), signature=signature), build=Modulated)
    path = OpenVinoExporter().export(component, tmp_path)
    # It ended the process once: one of its own says so without ending this one.
    code = f"import openvino; openvino.Core().compile_model({str(path)!r}, 'CPU')"
    subprocess.run([sys.executable, "-c", code], check=True)
    arrays = inputs_of(component, {})
    (got,), (want,) = run(path, arrays), reference(component, arrays)
    assert_close(got, want)
