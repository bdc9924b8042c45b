"""The rewriting of conversions to bfloat16 within a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from tests.exporters.openvino.graphs import computes_in, run, spec_of_one

from perfuse.backend import Component
from perfuse_exporters.openvino.exporter import OpenVinoExporter

pytestmark = pytest.mark.export


class Rounded(torch.nn.Module):
    """Rounds to bfloat16 itself, as Kandinsky 5 rounds the queries and keys of its attention."""

    def forward(self, left: Any) -> Any:
        return (left.to(torch.bfloat16).to(left.dtype),)


@pytest.mark.parametrize("size", ["batch", 64])
def test_what_is_rounded_to_bfloat16_is_rounded_to_the_nearest(
    size: str | int, tmp_path: Path
) -> None:
    """Of a size that is not fixed OpenVINO rounds a quarter of all numbers the wrong way."""
    spec = spec_of_one((size, 3), (size, 3))
    path = OpenVinoExporter().export(Component(spec=spec, build=Rounded), tmp_path)
    numbers = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    numbers[:, 1] = np.arange(64) + 0.5 + 512  # half-way between two, or a quarter
    numbers[:8, 2] = [np.inf, -np.inf, -3.4e38, 1.0 + 2**-7, 1.0 + 2**-8, 0.0, -257.0, 1e-30]
    assert np.array_equal(
        run(path, {"given": numbers})[0], torch.tensor(numbers).bfloat16().float()
    )


class RoundedBetween(Rounded):
    """The same between two layers, which engines compute in half precision where they are asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = torch.nn.Linear(3, 8), torch.nn.Linear(8, 3)

    def forward(self, left: Any) -> Any:
        return (self.after(super().forward(self.before(left))[0]),)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_what_is_rounded_in_half_precision(precision: str, tmp_path: Path) -> None:
    hint = {"bfloat16": "bf16", "float16": "f16"}[precision]
    if not computes_in(hint):
        pytest.skip(f"this CPU has no {precision}")
    spec = spec_of_one(("batch", 3), ("batch", 3))
    torch.manual_seed(0)
    module = RoundedBetween()
    component = Component(spec=spec, build=lambda: module, precision=precision)
    path = OpenVinoExporter().export(component, tmp_path)
    numbers = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module.float()(torch.tensor(numbers))[0].numpy()
    found = run(path, {"given": numbers}, hint)[0]
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()
