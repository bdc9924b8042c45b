"""What the README's picture says of an engine is what its test claims."""

import json
from importlib import import_module
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "docs" / "conformance.json"
ENGINES = {
    "torch:cpu": ("test_torch", "TestTorch"),
    "onnxruntime:cpu": ("test_onnxruntime", "TestOnnxRuntime"),
    "openvino:CPU": ("test_openvino", "TestOpenVino"),
}


@pytest.mark.parametrize("target", ENGINES)
def test_the_test_asks_a_part_of_what_the_picture_says(target: str) -> None:
    module, name = ENGINES[target]
    cls = getattr(import_module(f"tests.conformance.engines.{module}"), name)
    entries = json.loads(DATA.read_text("utf-8"))["entries"]
    claims = {e["model"]: e["claim"] for e in entries if e["target"] == target}
    assert {"shapes", "random-sd", "random-sdxl"} <= claims.keys()
    assert cls.backend == target
    assert cls.level <= claims["shapes"]["level"]
    assert set(cls.profiles) <= set(claims["shapes"]["profiles"])
