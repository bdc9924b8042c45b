"""ExecuTorch, held against the reference, with a model that is exported in seconds.

The bundled one takes five minutes to L2+fp16: ``perfuse conformance --backend executorch``.
"""

import pytest
from perfuse_conformance import BackendConformance


@pytest.mark.exhaustive
class TestExecuTorch(BackendConformance):
    backend = "executorch"
    model = "random-ddpm"
    level = "L1"
    precisions = ("float32",)
