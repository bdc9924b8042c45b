"""Diffusers' pipeline classes by name, whose ``from_pretrained`` takes a backend.

``from perfuse import FluxPipeline`` is one of them: it derives from Diffusers' class and does what that
does, so a program written for Diffusers runs when its import line changes.
"""

import os
from dataclasses import fields
from typing import Any

from perfuse.bridge.accelerate import Acceleration, Manner, accelerate_like
from perfuse.bridge.opening import accelerated, class_by_name, has_diffusers, open_bridged
from perfuse.errors import CheckpointError

__all__ = ["bridged_class", "from_pipe"]

_made: dict[str, type[Any]] = {}


class _Bridged:
    """What every such class has, before what Diffusers' class has."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", **settings: Any
    ) -> Any:
        """Open a model; the arguments are Diffusers', and ``backend=`` … of ``open_bridged``."""
        opening: Any = super().from_pretrained  # type: ignore[misc]
        return open_bridged(pretrained_model_name_or_path, opening, **settings)

    @classmethod
    def from_single_file(cls, file: "str | os.PathLike[str]", **settings: Any) -> Any:
        """Open a single-file checkpoint, as Diffusers does; ``backend=`` … as for ``accelerate``."""
        names = [one.name for one in fields(Manner)]
        own = {name: settings.pop(name) for name in names if name in settings}
        backend = settings.pop("backend", None)
        opening: Any = super().from_single_file  # type: ignore[misc]
        return accelerated(opening(os.fspath(file), **settings), backend, **own)

    @classmethod
    def from_pipe(cls, pipeline: Any, **settings: Any) -> Any:
        """Another pipeline of the same modules, which run where they ran."""
        return from_pipe(super().from_pipe, pipeline, **settings)  # type: ignore[misc]


class _Modular(_Bridged):
    """The same for modular pipelines, which load their components when they are asked to."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", **settings: Any
    ) -> Any:
        return open_bridged(pretrained_model_name_or_path, loading=False, **settings)


def from_pipe(opening: Any, pipeline: Any, **settings: Any) -> Any:
    """A ``from_pipe`` of Diffusers; an accelerated pipeline's modules stay accelerated."""
    pipe, acceleration = opening(pipeline, **settings), getattr(pipeline, "perfuse", None)
    return accelerate_like(acceleration, pipe) if isinstance(acceleration, Acceleration) else pipe


def bridged_class(name: str) -> type[Any] | None:
    """The class for one of Diffusers' pipeline classes: the same one each time.

    Returns:
        ``None`` if Diffusers is not installed, or has no such class.
    """
    if name not in _made:
        try:
            base = class_by_name(name) if has_diffusers() else None
        except CheckpointError:
            base = None
        if base is None:
            return None
        about = {"__doc__": base.__doc__, "__module__": __name__}
        own = _Modular if hasattr(base, "load_components") else _Bridged
        _made[name] = type(name, (own, base), about)
    return _made[name]
