"""Core ML programs, interpreted, held against the reference.

The bundled model is drawn with; of the families with other components and inputs, each component.
"""

from perfuse_conformance import BackendConformance


class TestShapes(BackendConformance):
    backend = "coreml-interpreter"
    level = "L2"
    profiles = ("fp16",)


class TestStableDiffusion(BackendConformance):
    backend = "coreml-interpreter"
    model = "random-sd"
    level = "L1"
    profiles = ("fp16",)


class TestStableDiffusionXL(BackendConformance):
    backend = "coreml-interpreter"
    model = "random-sdxl"
    level = "L1"
    profiles = ("fp16",)
