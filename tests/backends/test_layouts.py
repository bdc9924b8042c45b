"""However an input lies in memory, the answer is the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perfuse import DiffusionPipeline
from perfuse_conformance.runner.layouts import LAYOUTS

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]


@pytest.mark.export
@pytest.mark.parametrize(
    ("target", "format"),
    [("torch:cpu", None), ("onnxruntime:cpu", "onnx"), ("openvino:CPU", "openvino")],
)
def test_any_layout(checkpoint: Make, exported: Export, target: str, format: str | None) -> None:
    pytest.importorskip(target.split(":")[0])
    model = checkpoint("tiny") if format is None else exported("tiny", format)
    unet = DiffusionPipeline.from_pretrained(model, backend=target).program("unet")
    given = {
        "sample": np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32),
        "timestep": np.array([1, 500], dtype=np.float32),
    }
    right = unet(**given)["out_sample"]
    for layout in LAYOUTS.values():
        found = unet(**{name: layout(array) for name, array in given.items()})["out_sample"]
        np.testing.assert_allclose(found, right, atol=1e-5)
