"""What all code of a process shares, and a plugin may change for all of it.

``perfuse doctor`` compares it before and after a plugin was imported and asked, in a process of its own.
"""

import locale
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

__all__ = ["State"]

#: What numpy does at floating-point errors, and torch's settings, once they are imported.
_NUMPY = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
_TORCH = {
    "get_default_dtype": "torch.float32",
    "get_default_device": "cpu",
    "is_grad_enabled": "True",
    "are_deterministic_algorithms_enabled": "False",
    "get_float32_matmul_precision": "highest",
}


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a process that its code shares."""

    #: What is set, by a name for a message.
    settings: Mapping[str, Any]
    #: Every function and class of a module, and every method, by where it is found.
    functions: Mapping[str, object]

    @classmethod
    def now(cls) -> Self:
        """The state of this process."""
        return cls(settings=_settings(), functions=dict(_functions()))

    def changed(self, now: "State") -> list[str]:
        """What has been set otherwise or replaced meanwhile, by name; what was added to modules is not."""
        names = sorted({*self.settings, *now.settings})
        found = [n for n in names if self.settings.get(n) != now.settings.get(n)]
        replaced = sorted(
            name
            for name, function in self.functions.items()
            if now.functions.get(name, function) is not function
        )
        return [*found, *(f"the function {name}" for name in replaced)]


def _settings() -> dict[str, Any]:
    handlers = {one: signal.getsignal(one) for one in signal.Signals}
    return {
        "the working folder": _working_folder(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "the mask of new files": _mask(),
        "the recursion limit": sys.getrecursionlimit(),
        "the module path": list(sys.path),
        "the warnings that are shown": _filters(),
        "numpy's error state": _numpy(),
        **{f"torch's {name.removeprefix('get_')}": value for name, value in _torch().items()},
        **{f"the variable {name}": value for name, value in os.environ.items()},
        **{f"the handler of {one.name}": handler for one, handler in handlers.items()},
        **{f"the thread {one.name}": one for one in threading.enumerate() if not one.daemon},
    }


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _filters() -> list[Any]:
    """The filters of Python's own warnings, of all modules; narrower ones affect nobody else."""
    wide = [one for one in warnings.filters if one[1] is None and one[3] is None]
    return [one for one in wide if one[2].__module__ == "builtins"]


def _numpy() -> dict[str, str]:
    numpy = sys.modules.get("numpy")
    geterr = getattr(numpy, "geterr", None)
    return dict(geterr()) if geterr is not None else _NUMPY


def _torch() -> dict[str, str]:
    torch = sys.modules.get("torch")
    if not all(hasattr(torch, name) for name in _TORCH):
        return _TORCH
    return {name: str(getattr(torch, name)()) for name in _TORCH}


def _functions() -> Iterator[tuple[str, object]]:
    for name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType):
            continue
        for word, value in list(vars(module).items()):
            if callable(value):
                yield f"{name}.{word}", value
            # Not isinstance, which asks the value for its class: some warn when they are asked.
            if issubclass(type(value), type) and value.__module__ == name:
                for method, one in list(vars(value).items()):
                    if callable(one):
                        yield f"{name}.{word}.{method}", one
