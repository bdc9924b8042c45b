"""Core ML programs of Stable Diffusion and of XL, interpreted, held against the reference.

Each component is asked, of XL as a program for iOS 18, which has one operation for attention. Pictures
take longer: ``make conformance``. A file of its own, so that another worker of the tests takes it.
"""

from typing import ClassVar

from perfuse_conformance import BackendConformance


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
