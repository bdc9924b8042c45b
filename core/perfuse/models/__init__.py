"""perfuse's own models. Importing this loads no torch; each class does, on first use.

Parameter names, creation order and initialisers are those of Diffusers, so that its checkpoints
load as they are and a model built from a seed equals the one that Diffusers builds from it.

Each folder here owns an architecture: ``ARCHITECTURES`` in its ``__init__`` says where its
description is, which needs no torch, and where its network.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """A model by the class name that checkpoints give it."""
    if not name.startswith("_"):
        from perfuse.models.registry import own

        for architecture in own():
            if architecture.class_name == name:
                network = import_module(architecture.build.partition(":")[0])
                if hasattr(network, name):
                    return getattr(network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
