"""ONNX Runtime on the CPU, held against the reference. Pictures, and all in half precision: ``make conformance``."""

import pytest

from perfuse_conformance import BackendConformance


class TestOnnxRuntime(BackendConformance):
    backend = "onnxruntime:cpu"
    level = "L1"
    profiles = ("dyn",)
    precisions = ("float32",)


@pytest.mark.exhaustive
class TestPictures(BackendConformance):
    backend = "onnxruntime:cpu"
    level = "L2"
    profiles = ("dyn",)


@pytest.mark.exhaustive
class TestEveryCondition(BackendConformance):
    """A mask, a ControlNet's residuals and a worse version of the denoiser, in one small model."""

    backend = "onnxruntime:cpu"
    model = "random-edited"
    level = "L2"
    precisions = ("float32",)
