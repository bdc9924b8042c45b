"""Logarithm and exponential of float32, rounded once, so that tables are the same everywhere.

numpy's own float32 versions are off by up to 4 ulp, by processor. Over a short step in log-SNR that
is not small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["exp32", "expm1_32", "log32"]


def log32(x: Any) -> Any:
    """ln x."""
    with np.errstate(divide="ignore"):
        return np.log(x, dtype=np.float64).astype(np.float32)


def exp32(x: Any) -> Any:
    """e^x."""
    return np.exp(x, dtype=np.float64).astype(np.float32)


def expm1_32(x: Any) -> Any:
    """e^x - 1."""
    return np.expm1(x, dtype=np.float64).astype(np.float32)
