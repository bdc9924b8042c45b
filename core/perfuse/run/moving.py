"""What ``pipe.to(…)`` is given, read; and the torch modules that move along."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perfuse.contract.target import Placement
from perfuse.errors import InputError
from perfuse.plugins import host

__all__ = ["moved_modules", "read_where"]


def read_where(current: Placement, where: Sequence[Any]) -> tuple[Placement, str | None]:
    """The placement after ``pipe.to(*where)``, and the precision if one was given.

    Raises:
        InputError: an argument is neither a target, a device nor a dtype.
    """
    placement, precision = current, None
    for one in where:
        kind = f"{type(one).__module__}.{type(one).__qualname__}"
        if kind == "torch.dtype":
            precision = str(one).removeprefix("torch.")
        elif isinstance(one, str) or kind == "torch.device":
            placement = _placement(current, str(one))
        else:
            raise InputError(
                f"pipe.to({one!r}) was called; give a target such as 'openvino:GPU', a device "
                "such as 'cuda' or torch.device('cuda'), or a torch.dtype."
            )
    return placement, precision


def _placement(current: Placement, text: str) -> Placement:
    """Read a placement, or a device of the backend in use."""
    backend = current.default.backend
    head = text.partition("=")[2].partition(":")[0] or text.partition(":")[0]
    if "," not in text and "=" not in text and head not in host().backends():
        devices = {one.name.partition(":")[0] for one in host().devices(backend)}
        if head in devices:
            text = f"{backend}:{text}"
    return Placement.parse(text, default=backend)


def moved_modules(*held: Mapping[str, Any]) -> Iterator[Any]:
    """The torch modules among some attributes' values."""
    torch = sys.modules.get("torch")
    for values in held:
        for value in values.values():
            if torch is not None and isinstance(value, torch.nn.Module):
                yield value
