"""Lazy package attributes: names are imported on first use, so importing the package is cheap."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["diffusers_paths", "lazy"]


class _Paths:
    """Finds modules of Diffusers' paths, after all others found none."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> Any:
        if not fullname.startswith("perfuse."):
            return None
        return import_module("perfuse._diffusers").spec_of(fullname)


def diffusers_paths() -> None:
    """Make modules importable by the paths that they have in Diffusers: see ``perfuse._diffusers``."""
    if not any(type(finder).__qualname__ == _Paths.__qualname__ for finder in sys.meta_path):
        sys.meta_path.append(_Paths())


def lazy(
    package: str, homes: Mapping[str, Sequence[str]], *, rooms: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` for a package (PEP 562); the first resolves ``__all__``.

    Args:
        package: The package's ``__name__``.
        homes: Module, relative to the package, to the names that it provides.
        rooms: Subpackages whose classes are all names of the package too.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def names() -> list[str]:
        classes = (
            name
            for room in rooms
            for name in import_module(f"{package}.{room}").__all__
            if name[0].isupper() and not name.isupper()
        )
        return sorted({*modules, *classes})

    def get(name: str) -> Any:
        if name == "__all__":
            return names()
        where = modules.get(name)
        if where is None and name[0].isupper() and not name.isupper():
            held = (room for room in rooms if name in import_module(f"{package}.{room}").__all__)
            where = next(held, None)
        if where is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{where}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, names
