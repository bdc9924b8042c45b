"""The phases of sines, which stay in float32: those that count backwards, and those with a weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
openvino = pytest.importorskip("openvino")

from tests.exporters.openvino.graphs import computes_in, reference, run, spec_of_one

from perfuse.backend import Component
from perfuse.sources.checkpoint import Checkpoint
from perfuse_exporters.openvino.engine import import_openvino
from perfuse_exporters.openvino.exporter import OpenVinoExporter

pytestmark = pytest.mark.export


class Waves(torch.nn.Module):
    """Sinusoids of the share of a picture that is there, in thousandths, as Z-Image has them."""

    def forward(self, timestep: Any) -> Any:
        phase = ((1000 - timestep) / 1000 * 1000)[:, None] * torch.linspace(0.1, 1, 32)
        return (phase.cos(),)


def test_phases_that_count_backwards_stay_float32(tmp_path: Path) -> None:
    """In bfloat16 999 is 1000, and one radian wrong."""
    if not computes_in("bf16"):
        pytest.skip("this CPU has no bfloat16")
    spec = spec_of_one(("batch",), ("batch", 32))
    component = Component(spec=spec, build=Waves, precision="bfloat16")
    path = OpenVinoExporter().export(component, tmp_path)
    arrays = {"given": np.array([1.0, 53.58, 946.42], np.float32)}
    (want,) = reference(component, arrays)
    assert np.abs(run(path, arrays, "bf16")[0] - want).max() < 0.01
    assert np.abs(run(path, arrays)[0] - want).max() < 1e-3


def test_small_phases_that_count_backwards_are_exact_in_float32(tmp_path: Path) -> None:
    component = Component(spec=spec_of_one(("batch",), ("batch", 32)), build=Waves)
    path = OpenVinoExporter().export(component, tmp_path)
    timesteps = np.array([999.0, 990.0, 946.0], np.float32)
    phases = (1000 - timesteps.astype(np.float64))[:, None] * np.linspace(0.1, 1, 32)
    assert np.abs(run(path, {"given": timesteps})[0] - np.cos(phases)).max() < 1e-5


def test_a_weight_that_is_a_frequency_is_a_weight(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Fourier features are multiplied with a weight before the sine."""
    component = Checkpoint.open(checkpoint("latent-upscaler")).component("unet")
    folder = tmp_path / "graph"
    folder.mkdir()
    graph, weights = OpenVinoExporter().export_graph(component, folder)
    ports = import_openvino().Core().read_model(graph).get_parameters()
    names = {port.get_friendly_name() for port in ports}
    assert names == {*weights.constants, *component.signature.input_names}
