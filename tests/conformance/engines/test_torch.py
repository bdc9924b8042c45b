"""PyTorch on the CPU, held against the reference in float64."""

from perfuse_conformance import BackendConformance


class TestTorch(BackendConformance):
    backend = "torch:cpu"
    level = "L2"
    profiles = ("dyn", "fp16", "bf16")
