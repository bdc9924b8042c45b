"""XLA's CPU client, held against the reference."""

from typing import ClassVar

from perfuse_conformance import BackendConformance


class TestXla(BackendConformance):
    backend = "xla:cpu"
    model = "random-ddpm"
    level = "L2"
    profiles = ("fp16", "bf16")
    options: ClassVar = {"optimization": "0"}  # most of the time is XLA's compiler's
