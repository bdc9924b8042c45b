"""What the decoder is shown where nothing is kept. Apart: an export needs this alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.contract.spec import ComponentSpec

__all__ = ["host_inputs"]

_VALUES = {"image": 0.0, "mask": 1.0}


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Any]:
    """A black picture and a mask of ones, float32: with it the decoder draws everything itself."""
    return {
        tensor.name: np.full(tensor.resolve(sizes), _VALUES[tensor.name], dtype=np.float32)
        for tensor in spec.signature.inputs
        if tensor.name in _VALUES
    }
