"""ONNX Runtime on the CPU, held against the reference. In half precision: ``make conformance``."""

from perfuse_conformance import BackendConformance


class TestOnnxRuntime(BackendConformance):
    backend = "onnxruntime:cpu"
    level = "L2"
    profiles = ("dyn",)
