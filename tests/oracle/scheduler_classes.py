"""Diffusers' schedulers by name, also the two that want torchsde, which is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers")

NEED_TORCHSDE = {
    "DPMSolverSDEScheduler": "diffusers.schedulers.scheduling_dpmsolver_sde",
    "CosineDPMSolverMultistepScheduler": (
        "diffusers.schedulers.scheduling_cosine_dpmsolver_multistep"
    ),
}


def oracle(name: str) -> Any:
    """Diffusers' class. Two need torchsde for their noise alone, which tests replace by ours."""
    if name not in NEED_TORCHSDE:
        return getattr(diffusers, name)
    missing = importlib.util.find_spec("torchsde") is None
    if missing:
        sys.modules["torchsde"] = types.ModuleType("torchsde")
    try:
        return getattr(importlib.import_module(NEED_TORCHSDE[name]), name)
    finally:
        if missing:
            del sys.modules["torchsde"]
