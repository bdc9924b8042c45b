"""OpenVINO on the CPU, held against the reference."""

from perfuse_conformance import BackendConformance


class TestOpenVino(BackendConformance):
    backend = "openvino:CPU"
    level = "L2"
    profiles = ("dyn", "bf16")
