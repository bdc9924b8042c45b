"""Diffusers' callbacks at the end of a step: guidance, or image prompts, that end early.

``SDCFGCutoffCallback``, ``SDXLCFGCutoffCallback``, ``SD3CFGCutoffCallback``, ``IPAdapterScaleCutoffCallback``,
``PipelineCallback``, ``MultiPipelineCallbacks`` … are Diffusers' own classes, imported when they are asked
for; a native pipeline takes them as a bridged one does, on every backend.
"""

from importlib import import_module
from typing import Any

from perfuse.errors import InputError

_NAMES = (
    "IPAdapterScaleCutoffCallback",
    "MultiPipelineCallbacks",
    "PipelineCallback",
    "SD3CFGCutoffCallback",
    "SDCFGCutoffCallback",
    "SDXLCFGCutoffCallback",
    "SDXLControlnetCFGCutoffCallback",
)
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module("diffusers.callbacks")
    except ImportError as exc:
        raise InputError(
            f"perfuse.callbacks.{name} was asked for; it is Diffusers', which is not installed. "
            "Install it, pip install diffusers, or pass a function: callback_on_step_end=."
        ) from exc
    return getattr(module, name)


def __dir__() -> list[str]:
    return list(_NAMES)
