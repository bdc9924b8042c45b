"""Core ML programs, interpreted, held against the reference.

Each component of the bundled model is asked, and that of a small DDPM in half precision, too. Pictures take
longer: ``make conformance``.
"""

from perfuse_conformance import BackendConformance


class TestShapes(BackendConformance):
    backend = "coreml-interpreter"
    level = "L1"
    precisions = ("float32",)


class TestUnconditional(BackendConformance):
    backend = "coreml-interpreter"
    model = "random-ddpm"
    level = "L1"
    profiles = ("fp16",)
