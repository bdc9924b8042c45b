"""The simulated device, held against the reference: its components, as pictures take it a minute."""

from perfuse_conformance import BackendConformance


class TestOpenReg(BackendConformance):
    backend = "openreg:0"
    model = "random-ddpm"
    level = "L1"
    profiles = ("bf16",)
    precisions = ("float32", "bfloat16")
