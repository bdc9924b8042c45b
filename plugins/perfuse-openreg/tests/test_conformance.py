"""The simulated device, held against the reference."""

from perfuse_conformance import BackendConformance


class TestOpenReg(BackendConformance):
    backend = "openreg:0"
    level = "L2"
    profiles = ("fp16", "bf16")
