"""XLA's CPU client, held against the reference."""

from perfuse_conformance import BackendConformance


class TestXla(BackendConformance):
    backend = "xla:cpu"
    model = "random-ddpm"
    level = "L2"
    profiles = ("fp16", "bf16")
