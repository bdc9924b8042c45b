"""Core ML programs, interpreted, held against the reference.

That of a small DDPM is asked, in half precision, too. The bundled model's, and pictures, take longer:
``make conformance``.
"""

import pytest

from perfuse_conformance import BackendConformance


@pytest.mark.exhaustive
class TestShapes(BackendConformance):
    backend = "coreml-interpreter"
    level = "L1"
    precisions = ("float32",)


class TestUnconditional(BackendConformance):
    backend = "coreml-interpreter"
    model = "random-ddpm"
    level = "L1"
    profiles = ("fp16",)
