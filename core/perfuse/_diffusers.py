"""What perfuse has from Diffusers, where that is installed: paths, names and methods of its own.

A module that Diffusers has and perfuse has not is made when it is imported:
``from perfuse.pipelines.flux import FluxPipeline``. It has the names of Diffusers' module; each is
perfuse's where perfuse has one, and Diffusers' own object elsewhere.
"""

import inspect
import sys
from functools import partial
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from perfuse.errors import InputError

__all__ = ["borrowed", "method_of", "spec_of"]

#: The first part of a path, and the room with perfuse's names of what lies there. What lies
#: elsewhere, hooks and quantizers for two, is Diffusers' alone.
_ROOMS = {
    "loaders": "perfuse",
    "modular_pipelines": "perfuse.modular",
    "models": "perfuse.models",
    "pipelines": "perfuse",
    "schedulers": "perfuse.schedulers",
    "utils": "perfuse.utils",
}
#: Paths that are there without Diffusers, too, for the names that perfuse has.
_OWN = (
    *("loaders", "pipelines", "schedulers.scheduling_"),
    *("models.autoencoders", "models.controlnets", "models.transformers", "models.unets"),
)
#: perfuse's own modules that have what Diffusers' module of that path has, too.
_DOORS = (
    *("perfuse", "perfuse.image_processor", "perfuse.models", "perfuse.schedulers"),
    *("perfuse.utils", "perfuse.utils.torch_utils"),
)


class _Module(Loader):
    """Makes a module whose names are looked up when they are asked for."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        module.__doc__ = f"The names of Diffusers' {_theirs(name)}: perfuse's, where it has them."
        vars(module)["__getattr__"] = partial(borrowed, name)
        vars(module)["__dir__"] = partial(_names, name)


def spec_of(fullname: str) -> ModuleSpec | None:
    """The spec of a module that Diffusers has by the path ``fullname`` has in perfuse."""
    rest = fullname.partition(".")[2]
    diffusers = find_spec("diffusers")
    if diffusers is None:
        own = rest.startswith(_OWN)
        return ModuleSpec(fullname, _Module(), is_package=True) if own else None
    root = (diffusers.submodule_search_locations or [""])[0]
    place = Path(root, *rest.split("."))
    if (place / "__init__.py").is_file():
        return ModuleSpec(fullname, _Module(), is_package=True)
    return ModuleSpec(fullname, _Module()) if place.with_suffix(".py").is_file() else None


def borrowed(module: str, name: str) -> Any:
    """A name of Diffusers' module of the same path: perfuse's own, where a room has one.

    A module of a package is imported, as one that is asked for as an attribute.

    Raises:
        AttributeError: neither has it.
        InputError: perfuse has none, in a module that only Diffusers has, which is not installed.
    """
    missing = AttributeError(f"module {module!r} has no attribute {name!r}")
    if name.startswith("__"):
        raise missing
    if hasattr(sys.modules[module], "__path__") and find_spec(f"{module}.{name}") is not None:
        return import_module(f"{module}.{name}")
    room = _ROOMS.get(module.split(".")[1]) if "." in module else None
    if room not in (None, module) and not name.startswith("_"):
        try:
            return getattr(import_module(str(room)), name)
        except AttributeError:
            pass
    if find_spec("diffusers") is None:
        if module in _DOORS:
            raise missing
        raise InputError(
            f"{module}.{name} was asked for; it would be Diffusers', which is not installed. Install "
            "it: pip install diffusers."
        )
    try:
        return getattr(import_module(_theirs(module)), name)
    except AttributeError:
        raise missing from None


def method_of(class_name: str, name: str) -> Any:
    """A method of Diffusers' class: a function, or a ``staticmethod``.

    Returns:
        ``None`` where there is none, Diffusers is not installed, or the process has no torch
        imported, on whose tensors such methods compute.
    """
    if name.startswith("__") or "torch" not in sys.modules or find_spec("diffusers") is None:
        return None
    kind = getattr(import_module("diffusers"), class_name, None)
    found = inspect.getattr_static(kind, name, None) if isinstance(kind, type) else None
    return found if isinstance(found, FunctionType | staticmethod) else None


def _theirs(module: str) -> str:
    return f"diffusers{module.removeprefix('perfuse')}"


def _names(module: str) -> list[str]:
    if find_spec("diffusers") is None:
        return []
    return [one for one in dir(import_module(_theirs(module))) if not one.startswith("_")]
