"""Core ML programs, interpreted, held against the reference.

The bundled model is drawn with. Of a small DDPM each component is asked in half precision, too.
"""

from perfuse_conformance import BackendConformance


class TestShapes(BackendConformance):
    backend = "coreml-interpreter"
    level = "L2"
    precisions = ("float32",)


class TestUnconditional(BackendConformance):
    backend = "coreml-interpreter"
    model = "random-ddpm"
    level = "L1"
    profiles = ("fp16",)
