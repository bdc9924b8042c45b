"""OpenVINO on the CPU, held against the reference. Pictures and halves: ``make conformance``."""

from perfuse_conformance import BackendConformance


class TestOpenVino(BackendConformance):
    backend = "openvino:CPU"
    level = "L1"
    profiles = ("dyn",)
    precisions = ("float32",)
