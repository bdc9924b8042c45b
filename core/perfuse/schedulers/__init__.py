"""Schedulers: the table of a sampler, and Diffusers' classes as its face.

>>> from perfuse.schedulers import scheduler_class
>>> scheduler_class("euler")().schedule(8).timesteps.shape
(8,)

Importing this package imports no scheduler; each is loaded when its name is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from perfuse.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from .base import Scheduler as Scheduler
    from .ddim import DDIMScheduler as DDIMScheduler
    from .ddpm import DDPMScheduler as DDPMScheduler
    from .dpmsolver import DPMSolverMultistepScheduler as DPMSolverMultistepScheduler
    from .euler import EulerDiscreteScheduler as EulerDiscreteScheduler
    from .euler_ancestral import EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler
    from .flow_match_euler import FlowMatchEulerDiscreteScheduler as FlowMatchEulerDiscreteScheduler
    from .lcm import LCMScheduler as LCMScheduler
    from .pndm import PNDMScheduler as PNDMScheduler
    from .table import Schedule as Schedule
    from .unipc import UniPCMultistepScheduler as UniPCMultistepScheduler

_MODULES = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "flow_match_euler": "FlowMatchEulerDiscreteScheduler",
}

SCHEDULERS: Mapping[str, str] = MappingProxyType(
    {name: f"{__name__}.{module}:{name}" for module, name in _MODULES.items()}
)
"""Class name to where it is."""

SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        **{module.replace("_", "-"): name for module, name in _MODULES.items()},
        "dpm++": "DPMSolverMultistepScheduler",
        "dpmsolver-multistep": "DPMSolverMultistepScheduler",
    }
)
"""The names that a person types to class names."""

_OTHERS = {"Schedule": "table", "Scheduler": "base"}

__all__ = [
    "SCHEDULERS",
    "SHORT_NAMES",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "Schedule",
    "Scheduler",
    "UniPCMultistepScheduler",
    "scheduler_class",
    "scheduler_from_config",
]


def scheduler_class(name: str) -> type[Scheduler]:
    """The class of a name, either Diffusers' or a short one such as ``euler-ancestral``.

    Raises:
        InputError: there is none of this name.
    """
    full = SHORT_NAMES.get(name.lower().replace("_", "-"), name)
    reference = _find(full)
    if reference is None:
        raise InputError(f"Scheduler {name!r} is not known. Use one of: {', '.join(SHORT_NAMES)}.")
    module, attribute = reference.split(":")
    found: type[Scheduler] = getattr(importlib.import_module(module), attribute)
    return found


def _find(name: str) -> str | None:
    """Where a class is: one of ours, or one that a plugin brings."""
    if name in SCHEDULERS:
        return SCHEDULERS[name]
    from perfuse.plugins.host import host

    return host().schedulers().get(name)


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler of a checkpoint's parsed ``scheduler_config.json``.

    Raises:
        CheckpointError: its ``_class_name`` is missing or is none of those in ``SCHEDULERS``.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or _find(name) is None:
        raise CheckpointError(
            f"The checkpoint's scheduler is {name!r}, which perfuse does not have. Known: "
            f"{', '.join(SCHEDULERS)}. Set _class_name in scheduler_config.json to one of these."
        )
    return scheduler_class(name).from_config(config)


def __getattr__(name: str) -> Any:
    if name in SCHEDULERS:
        return scheduler_class(name)
    if name in _OTHERS:
        return getattr(importlib.import_module(f"{__name__}.{_OTHERS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
