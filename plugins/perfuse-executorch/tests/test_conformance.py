"""ExecuTorch, held against the reference."""

from perfuse_conformance import BackendConformance


class TestExecuTorch(BackendConformance):
    backend = "executorch"
    level = "L2"
    profiles = ("fp16",)
