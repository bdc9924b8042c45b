"""Core ML programs of Stable Diffusion XL, interpreted, held against the reference.

Each component is asked, as a program for iOS 18, which has one operation for attention. Pictures, and
another Stable Diffusion than ``shapes``, take longer: ``make conformance``. A file of its own, so that
another worker of the tests takes it.
"""

from typing import ClassVar

import pytest

from perfuse_conformance import BackendConformance


@pytest.mark.exhaustive
class TestStableDiffusionXL(BackendConformance):
    backend = "coreml-interpreter"
    model = "random-sdxl"
    level = "L1"
    precisions = ("float32",)
    options: ClassVar = {"deployment_target": "iOS18"}
