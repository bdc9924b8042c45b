"""Core ML programs, interpreted, held against the reference.

The bundled model is drawn with. Of Stable Diffusion XL, whose components and inputs are others, each
component is asked, as a program for iOS 18, which has one operation for attention. The rest takes
longer: ``perfuse conformance --backend coreml-interpreter --model random-sd``.
"""

from typing import ClassVar

from perfuse_conformance import BackendConformance


class TestShapes(BackendConformance):
    backend = "coreml-interpreter"
    level = "L2"
    profiles = ("fp16",)


class TestStableDiffusionXL(BackendConformance):
    backend = "coreml-interpreter"
    model = "random-sdxl"
    level = "L1"
    profiles = ("fp16",)
    options: ClassVar = {"deployment_target": "iOS18"}
