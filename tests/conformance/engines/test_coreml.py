"""Core ML programs, interpreted, held against the reference.

The bundled model is drawn with. Of a small DDPM each component is asked in half precision, too. Of Stable Diffusion and of XL each component is asked, of XL as a
program for iOS 18, which has one operation for attention. The rest takes longer: ``make conformance``.
"""

from typing import ClassVar

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


class TestStableDiffusion(BackendConformance):
    backend = "coreml-interpreter"
    model = "random-sd"
    level = "L1"
    precisions = ("float32",)


class TestStableDiffusionXL(BackendConformance):
    backend = "coreml-interpreter"
    model = "random-sdxl"
    level = "L1"
    precisions = ("float32",)
    options: ClassVar = {"deployment_target": "iOS18"}
